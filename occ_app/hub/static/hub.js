// What spares reloading the hub's pages: they work without it. Text goes in as text; markup comes from the server alone.
"use strict";

const byId = (id) => document.getElementById(id);
document.documentElement.classList.add("js");

/** A page or a fragment as elements; null when there is none just now. */
async function fetched(address) {
  try {
    const answer = await fetch(address, { headers: { Accept: "text/html" } });
    away(false);
    if (answer.status === 401) loggedOut();
    if (!answer.ok) return null;
    byId("logged-out")?.remove();
    const made = document.createElement("template");
    made.innerHTML = await answer.text();
    return made.content;
  } catch {
    away(true);
    return null; // it will be asked again
  }
}

/** Says that the hub does not answer, since the page's times are old from then on. */
function away(gone) {
  const banner = byId("away");
  if (!gone) return banner?.remove();
  if (banner) return;
  const since = new Date().toLocaleTimeString();
  const note = Object.assign(document.createElement("p"), { id: "away", className: "banner", textContent: `The hub does not answer. This page is as it was at ${since}; it is tried again.` });
  note.setAttribute("role", "status");
  byId("main").before(note);
}

/** Leads to where one logs in, unless something is written here that would be lost: then says so and keeps it. */
function loggedOut() {
  if (!byId("prompt")?.value && !byId("zip")?.files.length) return location.reload();
  if (byId("logged-out")) return;
  const note = Object.assign(document.createElement("p"), { id: "logged-out", className: "problem" });
  note.setAttribute("role", "alert");
  const link = Object.assign(document.createElement("a"), { href: "/login", target: "_blank", textContent: "Log in in another tab" });
  note.append("You are logged out. What you wrote is still here. ", link, ", then send it again.");
  byId("main").prepend(note);
}

// ---- Making a part of the page like its news, without touching what is the same: selection, scroll, focus stay

const keyOf = (node) => node.dataset && (node.dataset.key ?? node.dataset.seq ?? (node.id || undefined));

/** Makes `old` like `fresh`, which are of the same kind. Whether a person has unfolded something is theirs. */
function become(old, fresh) {
  if (fresh.dataset && "keep" in fresh.dataset) return; // the script has filled it
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
    if (old.getAttribute(name) !== value && !(name === "value" && old.closest("[data-tried]"))) old.setAttribute(name, value);
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
  const title = document.title;
  const count = () => {
    const needs = Number(byId("work")?.dataset.needs ?? 0);
    document.title = needs ? `(${needs}) ${title}` : title;
    navigator.setAppBadge?.(needs).catch(() => {}); // of an installed app
  };
  whileSeen(4000, async () => {
    const news = await fetched(lists.dataset.refresh + location.search);
    if (news === null) return;
    becomeChildren(lists, lists.firstChild, [...news.childNodes]);
    count();
  });
  count();
}

/** Loads what is named at the end of a list, or of a part of an answer, when it comes near. */
const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) if (isIntersecting) load(target);
}, { rootMargin: "600px" });

async function load(place) {
  if (place.dataset.loading) return;
  place.dataset.loading = "1";
  const news = await fetched(place.dataset.more ?? place.dataset.older);
  if (news === null) return delete place.dataset.loading;
  near.unobserve(place);
  const added = [...news.children];
  place.replaceWith(...added);
  for (const one of added) watch(one.parentElement ?? document);
}

function watch(where) {
  for (const place of where.querySelectorAll("[data-more], [data-older]")) near.observe(place);
}

// ---- Forms

function size(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} KB` : `${(count / 1e6).toFixed(1)} MB`;
}

/**
 * Takes the token of the present login, and the id for the next run, out of a page that refused a form. "same" when that
 * is a new login with the same key, so that the form can be sent again unasked.
 */
function renew(form, page) {
  const fresh = page?.getElementById("start") ?? page?.getElementById("reply");
  if (!fresh) return "none";
  const who = (where) => where.querySelector("form.who span")?.textContent;
  const token = fresh.elements.csrf.value;
  const changed = token !== form.elements.csrf.value;
  for (const field of document.querySelectorAll("input[name=csrf]")) field.value = token;
  form.elements.run.value = fresh.elements.run.value;
  return changed && who(page) === who(document) ? "same" : "other";
}

/** Says at the top of the page what went wrong. */
function complain(words) {
  byId("trouble")?.remove();
  const note = Object.assign(document.createElement("p"), { id: "trouble", className: "banner", textContent: words });
  note.setAttribute("role", "alert");
  byId("main").before(note);
}

/** Sends a form that starts a run from here: a refusal leaves everything as it was typed and chosen. */
function sends(form, { ready = () => null, done }) {
  const problem = form.querySelector(".problem") ?? byId("problem");
  const button = form.querySelector("button.main, button");
  const workspace = form.elements.workspace;
  const say = (words) => {
    if (!problem) return words.length && complain(words.join(" "));
    problem.replaceChildren(...words.map((word) => Object.assign(document.createElement("p"), { textContent: word })));
    problem.hidden = words.length === 0;
    if (words.length) problem.focus();
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const sending = form.querySelector("progress");
    const body = new FormData(form, event.submitter);
    const action = event.submitter?.hasAttribute("formaction") ? event.submitter.formAction : form.action;
    const wrong = await ready(body);
    if (wrong) return say([wrong]);
    const request = new XMLHttpRequest();
    const over = (words) => {
      button.disabled = false;
      if (sending) sending.hidden = true;
      say(words);
    };
    request.upload.onprogress = (progress) => {
      if (sending && progress.total > 20000) {
        sending.hidden = false;
        sending.value = progress.loaded / progress.total;
      }
    };
    request.onerror = () => over(["The hub does not answer. What you wrote is still here; try again in a moment."]);
    request.onload = () => {
      const page = new URL(request.responseURL || location.href).pathname;
      if (request.status < 400 && page.startsWith("/runs/")) {
        delete form.dataset.tried;
        over([]);
        return done(page, request.response);
      }
      if (request.status === 401) {
        loggedOut();
        return over(["You are logged out. Log in in another tab, then send this again: what you wrote is still here."]);
      }
      const renewed = renew(form, request.response);
      if (request.status === 403 && renewed === "same") return send();
      const told = request.response?.getElementById("problem");
      const words = told ? (told.children.length ? [...told.children] : [told]).map((one) => one.textContent) : [];
      const made = request.response?.querySelector("select[name=workspace]")?.value;
      if (made && workspace?.options && workspace.value !== made && made !== "*empty") {
        // The upload went well and is a workspace by now; only what came after it was refused.
        if (![...workspace.options].some((option) => option.value === made)) workspace.add(new Option(made, made));
        workspace.value = made;
        workspace.dispatchEvent(new Event("change"));
      }
      const gone = request.status >= 500 || request.status === 429;
      const silent = gone ? `The hub is away (${request.status}). What you wrote is still here; try again in a moment.` : `The hub answered with ${request.status}.`;
      over(words.length ? words : [silent]);
    };
    const send = () => {
      body.set("csrf", form.elements.csrf.value);
      body.set("run", form.elements.run.value);
      form.dataset.tried = "1";
      request.open("POST", action);
      request.responseType = "document";
      say([]);
      button.disabled = true;
      request.send(body);
    };
    send();
  });
  return say;
}

/** A field that grows with its text; Enter sends it where there is a keyboard. */
function promptField(form) {
  const field = form.elements.prompt;
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${Math.min(field.scrollHeight + 2, window.innerHeight / 2.5)}px`;
  };
  field.addEventListener("input", fit);
  field.addEventListener("keydown", (event) => {
    const plain = !event.shiftKey && !event.isComposing && form.id === "reply" && !matchMedia("(pointer: coarse)").matches;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey || plain)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  if (field.value) fit();
  return fit;
}

// ---- A folder as a zip, made here

const crcTable = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

async function deflated(bytes) {
  if (!window.CompressionStream || bytes.length < 200) return null;
  const packed = await new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw"))).arrayBuffer();
  return packed.byteLength < bytes.length ? new Uint8Array(packed) : null;
}

/** Packs files, each with its path, into a zip; `step` learns which part is done. */
async function zipOf(files, step) {
  const [parts, index] = [[], []];
  let offset = 0;
  for (const [number, { path, file }] of files.entries()) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const packed = await deflated(bytes);
    const name = new TextEncoder().encode(path);
    const head = new DataView(new ArrayBuffer(26));
    [20, 0x800, packed ? 8 : 0, 0, 33].forEach((value, place) => head.setUint16(2 * place, value, true));
    [crc32(bytes), (packed ?? bytes).length, bytes.length].forEach((value, place) => head.setUint32(10 + 4 * place, value, true));
    head.setUint16(22, name.length, true);
    const tail = new DataView(new ArrayBuffer(14));
    tail.setUint32(10, offset, true);
    parts.push("PK\x03\x04", head, name, packed ?? bytes);
    index.push("PK\x01\x02", new Uint8Array([20, 3]), head, tail, name);
    offset += 30 + name.length + (packed ?? bytes).length;
    step((number + 1) / files.length);
  }
  const end = new DataView(new ArrayBuffer(18));
  [4, 6].forEach((place) => end.setUint16(place, files.length, true));
  end.setUint32(8, new Blob(index).size, true);
  end.setUint32(12, offset, true);
  return new Blob([...parts, ...index, "PK\x05\x06", end], { type: "application/zip" });
}

/** The files in what was dropped, with their paths; what makes itself again is left out. */
async function filesIn(entry, path = "") {
  if (entry.isFile) return [{ path: path + entry.name, file: await new Promise((done, failed) => entry.file(done, failed)) }];
  if (leftOut.has(entry.name)) return [];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    for (const one of some) found.push(...(await filesIn(one, `${path}${entry.name}/`)));
  }
  return found;
}

const leftOut = new Set([".git", "node_modules", ".venv", "__pycache__"]);

function newTask(form) {
  const zip = byId("zip");
  const drop = byId("drop");
  const chosen = byId("chosen");
  const workspace = form.elements.workspace;
  let folder = null; // {name, files} in place of a zip
  const show = () => {
    const file = zip.files[0];
    if (file) folder = null;
    const what = folder ? `${folder.name}, ${folder.files.length} files, ${size(folder.files.reduce((sum, { file }) => sum + file.size, 0))}` : file ? `${file.name}, ${size(file.size)}` : "";
    chosen.hidden = !what;
    chosen.textContent = what;
    drop.classList.toggle("full", Boolean(what));
    if (what) workspace.value = "";
    form.classList.toggle("open", Boolean(what));
  };
  const take = (name, files) => {
    if (!files.length) return say(["There are no files in that folder."]);
    zip.value = "";
    folder = { name, files };
    say([]);
    show();
  };
  const ready = async (body) => {
    if (!zip.files.length && !folder && !workspace.value) return "Choose a project, a workspace, or files to send first.";
    if (!folder) return null;
    const bar = form.querySelector("progress");
    bar.hidden = false;
    try {
      body.set("zip", await zipOf(folder.files, (part) => { bar.value = part / 2; }), `${folder.name}.zip`);
    } catch (error) {
      return `The folder cannot be read: ${error.message}`;
    }
    return null;
  };
  const say = sends(form, { ready, done: (page) => location.assign(page) });
  promptField(form);
  zip.addEventListener("change", show);
  workspace.addEventListener("change", () => {
    if (workspace.value) [zip.value, folder] = ["", null];
    show();
  });
  show();
  byId("folder-part").hidden = false;
  byId("folder").addEventListener("change", (event) => {
    const files = [...event.target.files].map((file) => ({ path: file.webkitRelativePath, file }));
    const kept = files.filter(({ path }) => !path.split("/").some((part) => leftOut.has(part)));
    take(files[0]?.path.split("/")[0] ?? "folder", kept);
    event.target.value = "";
  });
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      form.classList.add("open");
      drop.classList.toggle("over", name === "dragover" || name === "dragenter");
    });
  }
  document.addEventListener("drop", async (event) => {
    if (!carriesFiles(event)) return;
    const entry = event.dataTransfer.items[0]?.webkitGetAsEntry?.();
    const files = event.dataTransfer.files;
    if (entry?.isDirectory) return take(entry.name, await filesIn(entry));
    if (!/\.zip$/i.test(files[0]?.name ?? "")) return say(["Drop a folder or a zip."]);
    zip.files = files;
    say([]);
    show();
  });
}

// ---- A conversation as it goes on

function clockText(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const minutes = Math.floor(seconds / 60) % 60;
  return seconds < 3600 ? `${minutes}:${two(seconds % 60)}` : `${Math.floor(seconds / 3600)}:${two(minutes)}:${two(seconds % 60)}`;
}

function converse(talk) {
  const said = byId("said");
  const latest = byId("latest");
  const ends = new Map(); // of each growing text: its number of elements, and the last as HTML
  let stream = null;
  let following = null; // the answer that the stream is about
  let clock = null;

  const room = () => document.documentElement.scrollHeight - window.innerHeight - window.scrollY;
  let follows = false; // whether the page stays at its end
  const keepUp = (change) => {
    const wasThere = follows;
    change();
    if (wasThere) toEnd();
  };
  const toEnd = () => window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  const look = () => {
    follows = room() < 120;
    latest.hidden = follows;
  };
  addEventListener("scroll", look, { passive: true });
  addEventListener("resize", look, { passive: true });
  latest.addEventListener("click", toEnd);

  function startClock() {
    const element = byId("clock");
    clock = element && { at: performance.now(), seconds: Number(element.dataset.seconds) };
  }

  function element(html) {
    const made = document.createElement("template");
    made.innerHTML = html;
    return made.content.firstElementChild;
  }

  /** Puts a block in as a whole, or the end of a text. */
  function put(answer, item) {
    let block = answer.querySelector(`:scope > [data-seq="${item.seq}"]`);
    if (item.html !== undefined) {
      const fresh = element(item.html);
      if (block?.nodeName === fresh.nodeName) become(block, fresh);
      else answer.append(fresh);
      return;
    }
    if (!block) {
      block = Object.assign(document.createElement("div"), { className: "text", dir: "auto" });
      block.dataset.seq = item.seq;
      answer.append(block);
    }
    const end = ends.get(item.seq);
    const blocks = [...item.blocks];
    if (item.at && blocks.length) blocks[0] = (end?.count === item.keep + 1 ? end.html.slice(0, item.at) : "") + blocks[0];
    const had = block.children.length;
    const there = [...block.childNodes];
    for (const node of there) if (node.nodeType !== Node.ELEMENT_NODE) node.remove();
    for (const [number, html] of blocks.entries()) {
      const [fresh, old] = [element(html), block.children[item.keep + number]];
      if (!old) block.append(fresh);
      else if (old.nodeName === fresh.nodeName) become(old, fresh);
      else old.replaceWith(fresh);
    }
    while (block.children.length > item.keep + blocks.length) block.lastElementChild.remove();
    if (blocks.length) ends.set(item.seq, { count: item.keep + blocks.length, html: blocks.at(-1) });
    // Whole paragraphs are read out, not pieces of words.
    if (block.children.length > had && had && answer === following) speak(block.children[block.children.length - 2].textContent);
  }

  function speak(text) {
    said.append(Object.assign(document.createElement("p"), { textContent: text }));
    while (said.children.length > 20) said.firstChild.remove();
  }

  function take(answer, message) {
    keepUp(() => {
      for (const item of message.items) put(answer, item);
      if (message.todo !== undefined) becomeChildren(byId("todo"), byId("todo").firstChild, [...(element(`<div>${message.todo}</div>`)?.childNodes ?? [])]);
      if (message.status !== undefined && byId("status")) byId("status").textContent = message.status;
      watch(answer);
    });
  }

  function follow(turn) {
    const answer = turn.querySelector("[data-answer]");
    stream?.close();
    following = answer;
    ends.clear();
    stream = new EventSource(`/runs/${turn.dataset.turn}/live?after=${answer.dataset.after ?? 0}`);
    const mine = stream;
    stream.addEventListener("page", (event) => {
      away(false);
      const message = JSON.parse(event.data);
      if (event.lastEventId) answer.dataset.after = event.lastEventId;
      take(answer, message);
      answer.dataset.loaded = "";
      if (message.over) {
        mine.close();
        stream = following = null;
        delete answer.dataset.live;
        speak(answer.querySelector(".text:last-of-type > :last-child")?.textContent ?? "");
      }
      if (message.parts || message.over) refresh();
    });
    stream.addEventListener("error", () => {
      away(true);
      // A break is mended by the browser. After a refusal: find out why, then try again.
      if (mine.readyState === EventSource.CLOSED) setTimeout(() => refresh().then(resume), 3000);
    });
  }

  /** Follows the turn that runs, or one whose answer the page does not have. */
  function resume() {
    if (document.hidden || stream?.readyState < EventSource.CLOSED) return;
    const turns = [...talk.querySelectorAll("[data-turn]")];
    const turn = turns.find((one) => one.querySelector("[data-answer]:not([data-loaded])") && !one.classList.contains("queued")) ?? turns.find((one) => one.querySelector("[data-answer][data-live]"));
    if (turn) follow(turn);
  }

  let asking = null;
  let again = false;
  /** Fetches all but the answers; what is asked for meanwhile is asked for again, since it may be newer. */
  function refresh() {
    again = asking !== null;
    asking ??= (async () => {
      let news;
      do {
        again = false;
        news = await fetched(`/runs/${talk.dataset.run}?parts=1`);
      } while (again);
      asking = null;
      if (news) renewed(news);
    })();
    return asking;
  }

  /** Takes over all but the answers of a page of this conversation. */
  function renewed(page) {
    const fresh = page.querySelector("#talk");
    if (!fresh) return;
    keepUp(() => {
      for (const answer of fresh.querySelectorAll("[data-answer]")) answer.dataset.keep = "";
      become(talk, fresh);
    });
    const title = page.querySelector("title");
    if (title) document.title = title.textContent;
    startClock();
    ready();
    resume();
    look();
  }

  const handled = new WeakSet();
  function ready() {
    for (const form of talk.querySelectorAll("form[data-follow]")) {
      if (handled.has(form)) continue;
      handled.add(form);
      const fit = form.id === "reply" ? promptField(form) : null;
      sends(form, {
        done: async (path) => {
          if (fit) {
            form.elements.prompt.value = "";
            fit();
          }
          history.replaceState(null, "", path);
          talk.dataset.run = path.split("/")[2];
          follows = true;
          await refresh();
          toEnd();
        },
      });
    }
    for (const button of talk.querySelectorAll("form[data-inline]")) inline(button, refresh);
  }

  setInterval(() => {
    const element = byId("clock");
    if (clock && element) element.textContent = clockText(clock.seconds + (performance.now() - clock.at) / 1000);
  }, 100);
  // Its place among those that wait is no event; other tabs may add turns.
  whileSeen(4000, () => (talk.querySelector(".turn.queued") || byId("away")) && refresh());
  // A browser has six connections for a hub; pages nobody sees leave theirs to the others, and only look how it stands.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return refresh().then(resume);
    stream?.close();
    stream = null;
  });
  setInterval(() => document.hidden && "live" in talk.dataset && refresh(), 15000);
  startClock();
  ready();
  resume();
  const chosen = byId(`turn-${talk.dataset.chosen}`);
  const asked = talk.querySelector(".approval form");
  if (asked && !location.hash) asked.closest(".approval").scrollIntoView({ block: "center" });
  else if ("live" in talk.dataset && talk.dataset.chosen === talk.dataset.run && !location.hash) toEnd();
  else if (chosen && !location.hash && talk.querySelectorAll("[data-turn]").length > 1) chosen.scrollIntoView();
  look();
}

/** Sends a form of one button without leaving the page. */
const inlined = new WeakSet();
function inline(form, after) {
  if (inlined.has(form)) return;
  inlined.add(form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.submitter ?? form.querySelector("button");
    const body = new FormData(form, event.submitter);
    button.disabled = true;
    const send = () => fetch(form.action, { method: "POST", body, redirect: "manual" });
    try {
      let done = await send();
      if (done.status === 403) {
        const token = (await fetched(location.pathname))?.querySelector("form.who input[name=csrf]")?.value;
        if (token) {
          body.set("csrf", token);
          done = await send();
        }
      }
      if (done.type !== "opaqueredirect") {
        button.disabled = false;
        const words = new DOMParser().parseFromString(await done.text(), "text/html").getElementById("problem")?.textContent;
        if (words) complain(words.trim());
      }
    } catch {
      button.disabled = false;
    }
    form.closest("details[open]")?.removeAttribute("open");
    after();
  });
}

// ---- Copying, and the keyboard

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const block = button.classList.contains("answer-copy") ? button.closest("[data-turn]") : button.parentElement;
  const texts = button.classList.contains("answer-copy") ? [...block.querySelectorAll(".answer > .text")] : [block.querySelector("pre")];
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(texts.map((one) => one.innerText).join("\n\n"));
    button.textContent = "Copied";
  } catch {
    // Without TLS a page has no clipboard: the text is selected, to be copied by hand.
    getSelection().selectAllChildren(texts[0]);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = name; }, 1500);
});

const KEYS = [["j / k", "next / previous"], ["Enter", "open"], ["/", "search"], ["g h", "home"], ["r", "reply, or a new task"], ["Esc", "leave a field"], ["?", "this list"]];

function help() {
  let box = byId("keys");
  if (!box) {
    box = Object.assign(document.createElement("dialog"), { id: "keys", className: "card" });
    box.setAttribute("aria-label", "Keys");
    const list = document.createElement("dl");
    for (const [key, what] of KEYS) {
      const [name, text] = [document.createElement("dt"), Object.assign(document.createElement("dd"), { textContent: what })];
      name.append(Object.assign(document.createElement("kbd"), { textContent: key }));
      list.append(name, text);
    }
    const close = Object.assign(document.createElement("button"), { textContent: "Close" });
    close.addEventListener("click", () => box.close());
    box.append(list, close);
    document.body.append(box);
  }
  if (!box.open) box.showModal();
}

/** Goes to the next (1) or the previous (-1) row or turn. */
function step(direction) {
  const all = [...document.querySelectorAll("a.row, [data-turn]")].filter((one) => one.offsetParent);
  if (!all.length) return;
  const focused = all.findIndex((one) => one === document.activeElement);
  const seen = all.findIndex((one) => one.getBoundingClientRect().top > 60);
  const from = focused >= 0 ? focused + direction : Math.max(0, direction > 0 ? seen : seen - 1);
  const next = all[Math.min(all.length - 1, Math.max(0, from))];
  if (!next.matches("a")) next.tabIndex = -1;
  next.focus({ preventScroll: true });
  next.scrollIntoView({ block: next.matches("a") ? "nearest" : "start" });
}

let lastKey = "";
document.addEventListener("keydown", (event) => {
  const { key } = event;
  const before = lastKey;
  lastKey = key;
  if (key === "Escape") {
    byId("keys")?.close();
    document.activeElement?.blur();
    byId("start")?.classList.remove("open");
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, textarea, select, dialog, [contenteditable]")) return;
  const act = {
    j: () => step(1),
    k: () => step(-1),
    "/": () => byId("find")?.focus(),
    h: () => before === "g" && location.assign("/"),
    r: () => byId("prompt")?.focus(),
    "?": help,
  }[key];
  if (!act) return;
  if (key !== "h") event.preventDefault();
  act();
});

document.addEventListener("DOMContentLoaded", () => {
  const lists = byId("lists");
  const talk = byId("talk");
  const form = byId("start");
  if (form) newTask(form);
  if (lists) refreshLists(lists);
  if (talk) converse(talk);
  watch(document);
  document.addEventListener("submit", (event) => {
    // Forms in the lists come and go.
    if (event.target.matches("#lists form[data-inline]") && !inlined.has(event.target)) {
      event.preventDefault();
      inline(event.target, () => null);
      event.target.requestSubmit(event.submitter);
    }
  });
});
