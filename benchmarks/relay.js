// The simplest thing that streams a CLI over HTTP: spawn it for each POST and write each chunk of its output to the
// response as a server-sent event. It keeps nothing; what a dropped connection misses is lost.
"use strict";

const http = require("http");
const { spawn } = require("child_process");

const [program, folder, ...args] = process.argv.slice(2);

const server = http.createServer((request, response) => {
  if (request.url === "/health") {
    response.end("{}");
    return;
  }
  let body = "";
  request.setEncoding("utf8");
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    const { prompt } = JSON.parse(body);
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache", Connection: "close" });
    const child = spawn(program, args, { cwd: folder, stdio: ["pipe", "pipe", "inherit"] });
    child.stdin.end(JSON.stringify({ type: "user", message: { role: "user", content: prompt } }) + "\n");
    child.stdout.setEncoding("utf8");
    child.stdout.on("data", (chunk) => {
      response.write(`event: output\ndata: ${JSON.stringify({ chunk, timestamp: Date.now() })}\n\n`);
    });
    child.on("close", (exitCode) => {
      response.end(`event: complete\ndata: ${JSON.stringify({ exitCode, timestamp: Date.now() })}\n\n`);
    });
  });
});

server.listen(0, "127.0.0.1", () => console.log(server.address().port));
