"""A stand-in for the Claude Code CLI that does exactly what its prompt says, good or bad.

The prompt is a JSON list of steps, run in order; anything else gets a short answer. Steps:

    {"say": TEXT, "times": N, "every": SECONDS}   text deltas
    {"line": TEXT} / {"raw": BASE64}              a line as given / bytes as given
    {"flood": BYTES, "of": TEXT}                  TEXT over and over, without line breaks of its own
    {"tool": NAME, "input": {}, "result": TEXT}   a tool call and its result, "wait": PATH between them
    {"write": PATH, "text": TEXT}                 a file in the workspace
    {"sh": COMMAND}                               a command of the shell in the workspace
    {"sleep": SECONDS} / {"wait": PATH}           do nothing for a while / until PATH exists
    {"spawn": "child"|"session"|"daemon"|"bare"}  leave a process behind, its pid in spawned.pid
    {"stubborn": true}                            from here on ignore the interrupt, SIGINT and SIGTERM
    {"stderr": TEXT}                              something on standard error
    {"close_stdout": true}
    {"result": {}}                                the result line with these keys changed, then wait for EOF
    {"exit": CODE} / {"kill": SIGNAL}             the end

With --await-claim it first waits for a workspace, and takes it as FAKE_CLAUDE_CLAIM says: `refuse`, `exit`, `hang`,
`elsewhere` for an answer from the wrong folder, or as asked.

A prompt after the result begins another turn in the same process, once a request to set the mode was answered; with
the file FAKE_CLAUDE_NEXT that request ends it (`exit`), is refused (`refuse`) or has no answer (`hang`).

A text that comes while a tool waits for a PATH is reported as taken after the tool's result.

Without a result, an exit or a kill among the steps a successful result is the last one.
"""

import binascii
import json
import os
import queue
import signal
import sys
import threading
import time

VERSION = "9.9.9"


def unique():
    """A random UUID; `uuid`, like `subprocess`, takes longer to load than all the rest."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


SESSION = unique()


def main():
    if "--version" in sys.argv:
        print(f"{VERSION} (a stand-in)")
        return
    if "auth" in sys.argv:
        sys.exit(0)
    count = os.environ.get("FAKE_CLAUDE_STARTS")
    if count:
        with open(count, "a") as file:
            file.write(os.environ.get("OCC_EXECUTION_ID", "") + "\n")
    if "--await-claim" in sys.argv:
        be_claimed(os.environ.get("FAKE_CLAUDE_CLAIM"))
    content = {}
    while content.get("type") != "user":  # before it a control request may register a hook, which is never called
        content = json.loads(sys.stdin.buffer.readline())
    prompt = content["message"]["content"]
    threading.Thread(target=obey_interrupts, daemon=True).start()
    while prompt is not None:
        prompt = take_turn(prompt)


def take_turn(prompt):
    """Follow a prompt. Returns the next one; None at the end of the input."""
    steps = script(prompt)
    say({"type": "system", "subtype": "init", "session_id": SESSION, "model": "fake", "claude_code_version": VERSION})
    ends = [step for step in steps if "tool" not in step]
    if not any(key in step for step in ends for key in ("result", "exit", "kill")):
        steps.append({"result": {}})
    try:
        for step in steps:
            run(step)
    except NextTurn as turn:
        return turn.args[0]
    return None


class NextTurn(Exception):
    """Another prompt came after the result."""


def be_claimed(how):
    content = json.loads(sys.stdin.buffer.readline() or sys.exit(0))
    if how == "exit":
        sys.exit(1)
    if how == "hang":
        sys.stdin.buffer.read()
    if how != "elsewhere":
        os.chdir(content["request"]["cwd"])
    kind = "error" if how == "refuse" else "success"
    say({"type": "control_response", "response": {"subtype": kind, "request_id": content["request_id"]}})


def script(prompt):
    if isinstance(prompt, list):
        prompt = " | ".join(part.get("text", part["type"]) for part in prompt)
    try:
        steps = json.loads(prompt)
    except ValueError:
        return [{"say": f"You said: {prompt[:200]}"}]
    return steps if isinstance(steps, list) else [{"say": "not a list"}]


stubborn = False
queued = []  # ids of texts that came after the prompt
prompts = queue.SimpleQueue()  # those after the result, then None
over = threading.Event()  # set from a result to the next prompt


def obey_interrupts():
    """A control request on stdin ends the turn, as in the real CLI; the end of stdin lets it leave."""
    for line in sys.stdin.buffer:
        content = json.loads(line)
        asked = content.get("request", {})
        if content.get("type") == "user" and "uuid" not in content:
            over.clear()
            prompts.put(content["message"]["content"])
        elif content.get("type") == "user":
            queued.append(content["uuid"])
            report(content["uuid"], "queued")
        elif asked.get("subtype") == "cancel_async_message" and asked["message_uuid"] in queued:
            queued.remove(asked["message_uuid"])
            report(asked["message_uuid"], "cancelled")
        elif asked.get("subtype") == "set_permission_mode" and over.is_set():
            answer_next(content, said_in(os.environ.get("FAKE_CLAUDE_NEXT")))
        if b"interrupt" in line and not stubborn:
            say(result({"is_error": True, "subtype": "error_during_execution", "terminal_reason": "aborted_streaming"}))
            sys.stdin.buffer.read()
            os._exit(0)
    prompts.put(None)


def said_in(path):
    if not path or not os.path.exists(path):
        return ""
    with open(path) as file:
        return file.read()


def answer_next(content, how):
    if how == "exit":
        os._exit(1)
    if how != "hang":
        kind = "error" if how == "refuse" else "success"
        say({"type": "control_response", "response": {"subtype": kind, "request_id": content["request_id"]}})


def run(step):
    global stubborn
    if "say" in step:
        message = f"msg_{os.urandom(16).hex()}"
        stream({"type": "message_start", "message": {"id": message}}, message)
        delta = {"type": "text_delta", "text": step["say"]}
        for _ in range(step.get("times", 1)):
            stream({"type": "content_block_delta", "index": 0, "delta": delta}, message)
            time.sleep(step.get("every", 0))
        stream({"type": "content_block_stop", "index": 0}, message)
    elif "line" in step:
        write(step["line"].encode() + b"\n")
    elif "raw" in step:
        write(binascii.a2b_base64(step["raw"]))
    elif "flood" in step:
        piece = step["of"].encode() * max(1, 65536 // len(step["of"]))
        for _ in range(step["flood"] // len(piece)):
            write(piece)
    elif "tool" in step:
        call = f"toolu_{os.urandom(4).hex()}"
        block = {"type": "tool_use", "id": call, "name": step["tool"], "input": step["input"]}
        say({"type": "assistant", "message": {"id": "msg_tool", "content": [block]}})
        while "wait" in step and not os.path.exists(step["wait"]):
            time.sleep(0.01)
        answer = {"type": "tool_result", "tool_use_id": call, "content": step["result"]}
        say({"type": "user", "message": {"role": "user", "content": [answer | {"is_error": step.get("error", False)}]}})
        while queued:
            report(queued.pop(0), "started")
    elif "write" in step:
        with open(step["write"], "w") as file:
            file.write(step["text"])
    elif "sh" in step:
        import subprocess

        subprocess.run(step["sh"], shell=True, check=True)
    elif "sleep" in step:
        time.sleep(step["sleep"])
    elif "wait" in step:
        while not os.path.exists(step["wait"]):
            time.sleep(0.01)
    elif "spawn" in step:
        spawn(step["spawn"])
    elif "stubborn" in step:
        stubborn = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    elif "stderr" in step:
        sys.stderr.write(step["stderr"])
        sys.stderr.flush()
    elif "close_stdout" in step:
        os.close(1)
    elif "result" in step:
        over.set()
        say(result(step["result"]))
        prompt = prompts.get()
        if prompt is not None:
            raise NextTurn(prompt)
    elif "exit" in step:
        os._exit(step["exit"])
    elif "kill" in step:
        os.kill(os.getpid(), step["kill"])
        time.sleep(60)


def report(message, state):
    """Say what became of a text that came during the turn."""
    say({"type": "command_lifecycle", "command_uuid": message, "state": state, "uuid": unique()})


def spawn(how):
    """Leave a long-lived process behind: a plain child, one in its own session, that without an environment, or one
    whose parent is gone."""
    import subprocess

    code = "import os, time; open('spawned.pid', 'w').write(str(os.getpid())); time.sleep(600)"
    if how == "daemon":
        code = f"import os\nif os.fork(): os._exit(0)\nos.setsid()\n{code}"
    quiet = {} if how == "daemon" else {"stdout": subprocess.DEVNULL}
    if how == "bare":
        quiet["env"] = {}
    subprocess.Popen([sys.executable, "-c", code], start_new_session=how in ("session", "bare"), **quiet)
    while not os.path.exists("spawned.pid") or not open("spawned.pid").read():
        time.sleep(0.01)


def result(changes):
    line = {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "result": "",
        "session_id": SESSION,
        "num_turns": 1,
        "duration_ms": 12,
        "total_cost_usd": 0.25,
        "usage": {"input_tokens": 3, "output_tokens": 5},
        "permission_denials": [],
    } | changes
    if "model_usage_since_last_result" not in line and isinstance(line["total_cost_usd"], (int, float)):
        line["model_usage_since_last_result"] = {"fake": {"costUSD": line["total_cost_usd"]}}
    return line


def stream(event, message):
    ids = {"parent_tool_use_id": None, "uuid": unique(), "api_message_id": message}
    say({"type": "stream_event", "event": event, "session_id": SESSION, **ids})


def say(content):
    """Print one line as the real CLI does: compact, and in UTF-8 where that can be."""
    try:
        line = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a character exists only escaped
        line = json.dumps(content, separators=(",", ":")).encode()
    write(line + b"\n")


def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
