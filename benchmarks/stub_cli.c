/*
 * Stands in for the Claude Code CLI in the benchmark: prints text deltas as stream-json at a set number, rate and size.
 *
 * Its prompt is one line on stdin whose content is "n=COUNT rate=PER_SECOND size=BYTES"; rate 0 is as fast as possible.
 * Every text starts with the nanoseconds of CLOCK_MONOTONIC at which it was written and its number (0, 1, 2 ...), then
 * is filled up to `size`. The init line's model holds the moment main() began. One write(2) a line, as the real CLI does.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LONGEST 65536
#define SESSION "00000000-0000-4000-8000-000000000000"
#define BILLION 1000000000LL

static int64_t now(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec * BILLION + moment.tv_nsec;
}

/* Sleeping until a moment, not for a while: the time a line takes does not add up over the run. */
static void sleep_until(int64_t moment)
{
    struct timespec deadline = {.tv_sec = moment / BILLION, .tv_nsec = moment % BILLION};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR)
        ;
}

static void fail(const char *why)
{
    fprintf(stderr, "stub_cli: %s\n", why);
    exit(2);
}

static void put(const char *line, size_t length)
{
    while (length > 0) {
        ssize_t written = write(STDOUT_FILENO, line, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            fail("standard output is closed");
        line += written;
        length -= (size_t)written;
    }
}

static void read_prompt(long *count, long *rate, long *size)
{
    static char line[LONGEST];
    size_t length = 0;
    while (length == 0 || line[length - 1] != '\n') {
        ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
        if (got <= 0)
            fail("there is no prompt on standard input");
        length += (size_t)got;
    }
    line[length] = '\0';
    const char *content = strstr(line, "\"n=");
    if (content == NULL || sscanf(content, "\"n=%ld rate=%ld size=%ld", count, rate, size) != 3)
        fail("the prompt must be n=COUNT rate=PER_SECOND size=BYTES");
    if (*count < 0 || *rate < 0 || *size < 0 || *size > LONGEST / 2)
        fail("a number of the prompt is out of range");
}

static void say_init(int64_t started)
{
    char line[512];
    int length = snprintf(line, sizeof line,
        "{\"type\":\"system\",\"subtype\":\"init\",\"session_id\":\"" SESSION "\",\"tools\":[\"Edit\",\"Read\"],"
        "\"model\":\"benchmark-%lld\",\"permissionMode\":\"acceptEdits\",\"claude_code_version\":\"0.0.1\"}\n",
        (long long)started);
    put(line, (size_t)length);
}

static void say_delta(long number, long size)
{
    static char line[LONGEST];
    int head = snprintf(line, sizeof line,
        "{\"type\":\"stream_event\",\"event\":{\"type\":\"content_block_delta\",\"index\":0,"
        "\"delta\":{\"type\":\"text_delta\",\"text\":\"");
    int text = snprintf(line + head, sizeof line - (size_t)head, "%lld %ld ", (long long)now(), number);
    if (text < size) {
        memset(line + head + text, 'x', (size_t)(size - text));
        text = (int)size;
    }
    int tail = snprintf(line + head + text, sizeof line - (size_t)(head + text),
        "\"}},\"session_id\":\"" SESSION "\",\"parent_tool_use_id\":null,"
        "\"uuid\":\"00000000-0000-4000-8000-%012ld\",\"api_message_id\":\"msg_benchmark\"}\n", number);
    put(line, (size_t)(head + text + tail));
}

static void say_result(int64_t started)
{
    char line[512];
    int length = snprintf(line, sizeof line,
        "{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"result\":\"\",\"session_id\":\"" SESSION "\","
        "\"num_turns\":1,\"duration_ms\":%lld,\"total_cost_usd\":0,\"model_usage_since_last_result\":{},"
        "\"usage\":{\"input_tokens\":1,\"output_tokens\":1},\"permission_denials\":[]}\n",
        (long long)((now() - started) / 1000000));
    put(line, (size_t)length);
}

static void await_end_of_input(void)
{
    char ignored[4096];
    ssize_t got;
    do
        got = read(STDIN_FILENO, ignored, sizeof ignored);
    while (got > 0 || (got < 0 && errno == EINTR));
}

int main(int argc, char **argv)
{
    int64_t started = now();
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        puts("0.0.1 (benchmark)");
        return 0;
    }
    long count, rate, size;
    read_prompt(&count, &rate, &size);
    say_init(started);
    int64_t first = now();
    for (long number = 0; number < count; number++) {
        if (rate > 0)
            sleep_until(first + number * BILLION / rate);
        say_delta(number, size);
    }
    say_result(started);
    await_end_of_input();
    return 0;
}
