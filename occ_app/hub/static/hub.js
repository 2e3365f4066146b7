// What spares reloading the hub's pages: they work without it. Text goes in as text; markup comes from the server alone.
"use strict";

const byId = (id) => document.getElementById(id);

/** A page's fragment as elements; null when there is none just now. Whoever is not logged in any more is sent to do so. */
async function fetched(address) {
  try {
    const answer = await fetch(address, { headers: { Accept: "text/html" } });
    if (answer.status === 401) location.reload();
    if (!answer.ok) return null;
    const made = document.createElement("template");
    made.innerHTML = await answer.text();
    return made.content;
  } catch {
    return null; // the hub is away; it will be asked again
  }
}

/** Runs `look` every so often while somebody can see the page, and at once when they come back to it. */
function whileSeen(milliseconds, look) {
  setInterval(() => document.hidden || look(), milliseconds);
  document.addEventListener("visibilitychange", () => document.hidden || look());
}

// ---- The lists of the first page

function refreshLists(lists) {
  whileSeen(4000, async () => {
    const news = await fetched(lists.dataset.refresh + location.search);
    if (news === null) return;
    const sections = [...news.querySelectorAll("section")];
    [...lists.querySelectorAll(":scope > section")].forEach((old, place) => {
      const current = sections[place];
      if (!current || old.innerHTML === current.innerHTML) return;
      const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      old.replaceWith(current);
      if (focused) [...current.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused)?.focus();
    });
  });
}

// ---- The form that starts an execution

function size(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} KB` : `${(count / 1e6).toFixed(1)} MB`;
}

function betterForm(form) {
  const zip = byId("zip");
  const workspace = form.elements.workspace;
  const problem = form.querySelector("#problem");
  const button = form.querySelector("button.main");
  const say = (words) => {
    problem.replaceChildren(...words.map((word) => Object.assign(document.createElement("p"), { textContent: word })));
    problem.hidden = words.length === 0;
    if (words.length) problem.focus();
  };

  if (zip) {
    const drop = byId("drop");
    const chosen = byId("chosen");
    const show = () => {
      const file = zip.files[0];
      chosen.hidden = !file;
      chosen.textContent = file ? `${file.name}, ${size(file.size)}` : "";
      drop.classList.toggle("full", Boolean(file));
      if (file) workspace.value = "";
    };
    zip.addEventListener("change", show);
    workspace.addEventListener("change", () => {
      if (workspace.value) zip.value = "";
      show();
    });
    show();
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
      document.addEventListener(name, (event) => {
        if (!carriesFiles(event)) return;
        event.preventDefault();
        drop.classList.toggle("over", name === "dragover" || name === "dragenter");
      });
    }
    document.addEventListener("drop", (event) => {
      if (!carriesFiles(event)) return;
      if (!/\.zip$/i.test(event.dataTransfer.files[0]?.name ?? "")) return say(["That is not a zip; pack the folder into one first."]);
      zip.files = event.dataTransfer.files;
      say([]);
      show();
    });
  }

  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  // Sent from here, a refusal leaves everything as it was typed and chosen, and an upload shows how far it is.
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (zip && !zip.files.length && !workspace.value) return say(["Choose a zip or a workspace first."]);
    const sending = form.querySelector("progress");
    const request = new XMLHttpRequest();
    const over = (words) => {
      button.disabled = false;
      if (sending) sending.hidden = true;
      say(words);
    };
    request.responseType = "document";
    request.upload.onprogress = (progress) => {
      if (sending && zip?.files.length) {
        sending.hidden = false;
        sending.value = progress.loaded / progress.total;
      }
    };
    request.onerror = () => over(["The hub does not answer. What you wrote is still here; try again in a moment."]);
    request.onload = () => {
      const page = new URL(request.responseURL).pathname;
      if (request.status < 400 && page.startsWith("/runs/")) return location.assign(page);
      const told = request.response?.getElementById("problem");
      const words = told ? (told.children.length ? [...told.children] : [told]).map((one) => one.textContent) : [];
      const made = request.response?.querySelector("select[name=workspace]")?.value;
      if (made && zip && workspace.value !== made) {
        // The upload went well and is a workspace by now; only what came after it was refused.
        if (![...workspace.options].some((option) => option.value === made)) workspace.add(new Option(made, made));
        workspace.value = made;
        workspace.dispatchEvent(new Event("change"));
      }
      over(words.length ? words : [`The hub answered with ${request.status}.`]);
    };
    request.open("POST", form.action);
    say([]);
    button.disabled = true;
    request.send(new FormData(form));
  });
}

// ---- An execution as it goes on

function clockText(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const minutes = Math.floor(seconds / 60) % 60;
  return seconds < 3600 ? `${minutes}:${two(seconds % 60)}` : `${Math.floor(seconds / 3600)}:${two(minutes)}:${two(seconds % 60)}`;
}

function follow(run) {
  const address = run.dataset.run;
  const answer = byId("answer");
  const said = byId("said");
  const cancel = byId("cancel");
  let shown = Number(answer.dataset.seq); // up to here the server's markup goes
  let newest = shown;
  let waiting = []; // texts after that: [number, text]
  let source = null;
  let timer = null;
  let asking = false;
  let again = false;
  let spoken = "";
  let lost = false;
  let clock = { at: performance.now(), seconds: Number(answer.dataset.elapsed) };

  const isOver = () => "over" in answer.dataset;
  const atBottom = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 90;
  const keepUp = (change) => {
    const follows = atBottom() && !isOver();
    change();
    if (follows) window.scrollTo(0, document.documentElement.scrollHeight);
  };

  function append(text) {
    const tail = answer.querySelector(".tail");
    if (tail) tail.append(text);
    // Whole lines are read out, not pieces of words.
    spoken += text;
    const end = spoken.lastIndexOf("\n");
    if (end >= 0) {
      said.append(Object.assign(document.createElement("p"), { textContent: spoken.slice(0, end) }));
      spoken = spoken.slice(end + 1);
      while (said.children.length > 20) said.firstChild.remove();
    }
  }

  /** Put the server's markup in, from the first block that may have changed, and behind it the text it does not have. */
  function put(news) {
    const fresh = news.getElementById("answer");
    const stable = Number(answer.dataset.stable);
    const open = new Set();
    for (const block of [...answer.children]) {
      if (Number(block.dataset.seq) <= stable) continue;
      if (block.open) open.add(block.dataset.seq);
      block.remove();
    }
    for (const block of [...fresh.children]) {
      if (open.has(block.dataset.seq)) block.open = true;
      answer.append(block);
    }
    delete answer.dataset.over;
    Object.assign(answer.dataset, fresh.dataset);
    shown = Number(answer.dataset.seq);
    newest = Math.max(newest, shown);
    waiting = waiting.filter(([seq]) => seq > shown);
    const tail = answer.querySelector(".tail");
    if (tail) tail.append(...waiting.map(([, text]) => text));
    for (const part of news.querySelectorAll("[data-part]")) {
      const old = run.querySelector(`[data-part="${part.dataset.part}"]`);
      if (old.innerHTML !== part.innerHTML || old.className !== part.className) old.replaceWith(part);
    }
    lost = false;
    clock = { at: performance.now(), seconds: Number(answer.dataset.elapsed) };
    document.title = document.title.replace(/^\w+/, answer.dataset.word);
    if (isOver()) finish();
  }

  async function refresh() {
    timer = null;
    if (asking) {
      again = true;
      return;
    }
    asking = true;
    const began = performance.now();
    const news = await fetched(`${address}/answer?after=${answer.dataset.stable}`);
    asking = false;
    if (news !== null) keepUp(() => put(news));
    if (isOver()) return;
    // A long answer takes longer to make, and is asked for less often.
    const pause = Math.min(Math.max(500, 8 * (performance.now() - began)), 10000);
    if (again || news === null) soon(pause);
    again = false;
  }

  function soon(milliseconds) {
    if (timer === null) timer = setTimeout(refresh, milliseconds);
  }

  function take(event) {
    const seq = Number(event.lastEventId);
    if (seq <= newest) return false;
    newest = seq;
    return true;
  }

  function listen() {
    source?.close();
    source = new EventSource(`${address}/events?after=${newest}`);
    source.addEventListener("open", () => lost && refresh());
    source.addEventListener("output", (event) => {
      if (!take(event)) return;
      const text = JSON.parse(event.data).chunk;
      waiting.push([newest, text]);
      keepUp(() => append(text));
      soon(text.includes("\n") ? 400 : 1500);
    });
    for (const name of ["started", "tool", "gap", "status"]) {
      source.addEventListener(name, (event) => take(event) && soon(150));
    }
    for (const name of ["complete", "error"]) {
      source.addEventListener(name, (event) => {
        if (event.data) {
          source.close();
          take(event);
          clearTimeout(timer);
          refresh();
        } else {
          lost = true;
          run.querySelector("[data-part=status]").textContent = "The connection broke; it is tried again.";
          // A break is mended by the browser. After a refusal: find out why, then try anew.
          if (source.readyState === EventSource.CLOSED) setTimeout(() => refresh().then(resume), 3000);
        }
      });
    }
  }

  function resume() {
    if (!isOver() && !document.hidden && source.readyState === EventSource.CLOSED) listen();
  }

  function finish() {
    source?.close();
    cancel.hidden = true;
    if (spoken) append("\n");
    byId("clock").textContent = clockText(clock.seconds);
    const form = byId("start");
    if (form) betterForm(form);
  }

  cancel.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = cancel.querySelector("button");
    button.disabled = true;
    try {
      const done = await fetch(cancel.action, { method: "POST", body: new FormData(cancel), redirect: "manual" });
      button.disabled = done.type === "opaqueredirect";
    } catch {
      button.disabled = false;
    }
    refresh();
  });

  setInterval(() => {
    if (!isOver()) byId("clock").textContent = clockText(clock.seconds + (performance.now() - clock.at) / 1000);
  }, 100);
  // Its place among those that wait is no event.
  whileSeen(3000, () => answer.dataset.state === "queued" && soon(0));
  // A browser has six connections for a hub; pages nobody sees leave theirs to the others, and only look how it stands.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source.close();
    else resume();
  });
  setInterval(() => document.hidden && !isOver() && soon(0), 15000);
  listen();
}

document.addEventListener("DOMContentLoaded", () => {
  const lists = byId("lists");
  const run = byId("run");
  const form = byId("start");
  if (form) betterForm(form);
  if (lists) refreshLists(lists);
  if (run && !("over" in byId("answer").dataset)) follow(run);
});
