// What spares reloading the hub's pages: they work without it. Text goes in as text; markup comes from the server alone.
"use strict";

const byId = (id) => document.getElementById(id);
document.documentElement.classList.add("js");

const PATIENCE = 8000; // milliseconds for the hub to answer
let tries = 0; // since its last answer; the first are short, since each dead connection of the browser takes one

/** A page or a fragment as elements; null when there is none just now. */
async function fetched(address) {
  try {
    const answer = await fetch(address, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(tries ? Math.min(PATIENCE, 2000 + 500 * tries) : PATIENCE) });
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

let heardAt = new Date(); // the last answer of the hub

/** Shows or removes the note that the hub does not answer. */
function away(gone) {
  const banner = byId("away");
  tries = gone ? tries + 1 : 0;
  if (!gone) {
    heardAt = new Date();
    return banner?.remove();
  }
  if (banner) return;
  const note = Object.assign(document.createElement("p"), { id: "away", className: "banner", textContent: `The hub does not answer. This page is as it was at ${heardAt.toLocaleTimeString()}. The page tries again every few seconds.` });
  note.setAttribute("role", "status");
  byId("main").before(note);
}
addEventListener("offline", () => away(true));

/** As `ago` of filters.py. */
function agoText(seconds) {
  if (seconds < 5) return "just now";
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= size) return `${Math.floor(seconds / size)} ${name} ago`;
  return `${Math.floor(seconds)} s ago`;
}

const skew = Date.now() - Date.parse(document.documentElement.dataset.now); // of this clock to the hub's

/** Lets the ages on the page grow. */
function growOld() {
  for (const time of document.querySelectorAll("main time[datetime]")) {
    const text = agoText((Date.now() - skew - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
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

/** Runs `look` every so often while the page is visible, at once when it becomes so, and when the network is back. */
function whileSeen(milliseconds, look) {
  let busy = false; // one look at a time
  const run = async () => {
    if (document.hidden || busy) return;
    busy = true;
    await look();
    busy = false;
  };
  setInterval(run, milliseconds);
  document.addEventListener("visibilitychange", run);
  addEventListener("online", run);
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
  let busy = false; // from the first of two clicks on
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (busy) return;
    busy = true;
    const sending = form.querySelector("progress");
    const body = new FormData(form, event.submitter);
    const action = event.submitter?.hasAttribute("formaction") ? event.submitter.formAction : form.action;
    const wrong = await ready(body);
    if (wrong) {
      busy = false;
      return say([wrong]);
    }
    const request = new XMLHttpRequest();
    const over = (words) => {
      busy = false;
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
    const keepalive = Boolean(form.closest(".approval")); // an answer arrives also when the page is left at once
    const send = () => fetch(form.action, { method: "POST", body, redirect: "manual", keepalive });
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
  whileSeen(10000, growOld);
  if (!talk && !document.querySelector("[data-refresh]")) whileSeen(15000, () => fetched("/static/icon.svg")); // shows whether the hub is away
  document.addEventListener("submit", (event) => {
    // Forms in the lists come and go.
    if (event.target.matches("#lists form[data-inline]") && !inlined.has(event.target)) {
      event.preventDefault();
      inline(event.target, () => null);
      event.target.requestSubmit(event.submitter);
    }
  });
});
