// What spares reloading the hub's pages: they work without it. Text goes in as text; markup comes from the server alone.
"use strict";

const byId = (id) => document.getElementById(id);

/** A page's fragment as elements; null when there is none just now. */
async function fetched(address) {
  try {
    const answer = await fetch(address, { headers: { Accept: "text/html" } });
    if (answer.status === 401) loggedOut();
    if (!answer.ok) return null;
    byId("logged-out")?.remove();
    const made = document.createElement("template");
    made.innerHTML = await answer.text();
    return made.content;
  } catch {
    return null; // the hub is away; it will be asked again
  }
}

/** Leads to where one logs in, unless something is written here that would be lost: then says so and keeps it. */
function loggedOut() {
  if (!byId("prompt")?.value && !byId("zip")?.files.length) return location.reload();
  if (byId("logged-out")) return;
  const note = Object.assign(document.createElement("p"), { id: "logged-out", className: "problem" });
  note.setAttribute("role", "alert");
  const link = Object.assign(document.createElement("a"), { href: "/login", target: "_blank", textContent: "Log in in another tab" });
  note.append("You are logged out. What you wrote is still here. ", link, ", then go on.");
  byId("main").prepend(note);
}

// ---- Making a part of the page like its news, without touching what is the same: selection, scroll, focus stay

const keyOf = (node) => node.dataset && (node.dataset.key ?? node.dataset.seq ?? (node.id || undefined));

/** Makes `old` like `fresh`, which are of the same kind. Whether a person has unfolded something is theirs. */
function become(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    // Text that only grew is not replaced: a selection in it stays.
    if (fresh.data.startsWith(old.data)) old.appendData(fresh.data.slice(old.data.length));
    else old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  becomeChildren(old, old.firstChild, [...fresh.childNodes]);
}

/** Makes the children of `parent` from `place` on like the nodes `fresh`; those with a key are known by it. */
function becomeChildren(parent, place, fresh) {
  const coming = new Set(fresh.map(keyOf));
  for (const node of fresh) {
    while (place && keyOf(place) !== undefined && !coming.has(keyOf(place))) place = removed(place);
    const key = keyOf(node);
    if (place && keyOf(place) === key && place.nodeName === node.nodeName) {
      become(place, node);
      place = place.nextSibling;
      continue;
    }
    let known = null;
    for (let one = place; key !== undefined && one && !known; one = one.nextSibling) if (keyOf(one) === key) known = one;
    if (known && known.nodeName === node.nodeName) {
      // A node that is moved loses its focus and selection, so that those before it go, if they are to.
      while (place !== known && (keyOf(place) === undefined || !coming.has(keyOf(place)))) place = removed(place);
      if (place === known) place = known.nextSibling;
      else parent.insertBefore(known, place);
      become(known, node);
    } else {
      parent.insertBefore(node, place);
    }
  }
  while (place) place = removed(place);
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
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
    becomeChildren(lists, lists.firstChild, [...news.childNodes]);
  });
}

// ---- The form that starts an execution

function size(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} KB` : `${(count / 1e6).toFixed(1)} MB`;
}

/**
 * Takes the token of the present login, and the id for the next run, out of a page that refused a form. "same" when that
 * is a new login with the same key, so that the form can be sent again unasked.
 */
function renew(form, page) {
  const fresh = page?.getElementById("start");
  if (!fresh) return "none";
  const who = (where) => where.querySelector("form.who span")?.textContent;
  const token = fresh.elements.csrf.value;
  const changed = token !== form.elements.csrf.value;
  for (const field of document.querySelectorAll("input[name=csrf]")) field.value = token;
  form.elements.run.value = fresh.elements.run.value;
  return changed && who(page) === who(document) ? "same" : "other";
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
    request.upload.onprogress = (progress) => {
      if (sending && zip?.files.length) {
        sending.hidden = false;
        sending.value = progress.loaded / progress.total;
      }
    };
    request.onerror = () => over(["The hub does not answer. What you wrote is still here; try again in a moment."]);
    request.onload = () => {
      const page = new URL(request.responseURL || location.href).pathname;
      if (request.status < 400 && page.startsWith("/runs/")) return location.assign(page);
      if (request.status === 401) {
        loggedOut();
        return over(["You are logged out. Log in in another tab, then send this again: what you wrote is still here."]);
      }
      const renewed = renew(form, request.response);
      if (request.status === 403 && renewed === "same") return send();
      const told = request.response?.getElementById("problem");
      const words = told ? (told.children.length ? [...told.children] : [told]).map((one) => one.textContent) : [];
      const made = request.response?.querySelector("select[name=workspace]")?.value;
      if (made && zip && workspace.value !== made) {
        // The upload went well and is a workspace by now; only what came after it was refused.
        if (![...workspace.options].some((option) => option.value === made)) workspace.add(new Option(made, made));
        workspace.value = made;
        workspace.dispatchEvent(new Event("change"));
      }
      const away = request.status >= 500 || request.status === 429;
      const silent = away ? `The hub is away (${request.status}). What you wrote is still here; try again in a moment.` : `The hub answered with ${request.status}.`;
      over(words.length ? words : [silent]);
    };
    const send = () => {
      request.open("POST", form.action);
      request.responseType = "document";
      say([]);
      button.disabled = true;
      request.send(new FormData(form));
    };
    send();
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
    text = text.replace(/\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|.?)/g, ""); // a terminal's, which the server leaves out
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
    for (const node of [...answer.childNodes]) if (node.nodeType !== Node.ELEMENT_NODE) node.remove();
    const first = [...answer.children].find((block) => Number(block.dataset.seq) > stable);
    becomeChildren(answer, first ?? null, [...fresh.children]);
    delete answer.dataset.over;
    Object.assign(answer.dataset, fresh.dataset);
    shown = Number(answer.dataset.seq);
    newest = Math.max(newest, shown);
    waiting = waiting.filter(([seq]) => seq > shown);
    const tail = answer.querySelector(".tail");
    if (tail) tail.append(...waiting.map(([, text]) => text));
    for (const part of news.querySelectorAll("[data-part]")) {
      const old = run.querySelector(`[data-part="${part.dataset.part}"]`);
      become(old, part);
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
    for (const name of ["started", "tool", "gap", "status", "thinking", "task", "todo", "denial", "compaction"]) {
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
      const send = () => fetch(cancel.action, { method: "POST", body: new FormData(cancel), redirect: "manual" });
      let done = await send();
      if (done.status === 403) {
        const token = (await fetched(location.pathname))?.querySelector("form.who input[name=csrf]")?.value;
        if (token) {
          cancel.elements.csrf.value = token;
          done = await send();
        }
      }
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
