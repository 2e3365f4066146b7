// A conversation as it goes on.
"use strict";

function clockText(seconds) {
  if (Number(seconds.toFixed(1)) < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.floor(seconds + 0.05);
  const minutes = Math.floor(whole / 60) % 60;
  return whole < 3600 ? `${minutes} min ${whole % 60} s` : `${Math.floor(whole / 3600)} h ${minutes} min`;
}

const STEADY = 400; // milliseconds that a page must not have changed its height before a tap answers a question
let SILENCE = 12000; // milliseconds without a message after which a stream is dead: live.py sends one every 5 s

/** A tap is meant for what was there when the finger set out: parts that arrive can put Deny where Allow was. */
function guardTaps() {
  let moved = performance.now();
  const observer = new ResizeObserver(() => { moved = performance.now(); });
  const observed = new WeakSet();
  addEventListener("click", (event) => {
    const byPointer = event.detail > 0;
    if (byPointer && performance.now() - moved < STEADY && event.target.closest(".approval button")) event.preventDefault();
  }, true);
  // The page itself keeps its height as long as all fits on the screen; what is in it does not.
  return () => {
    for (const one of document.querySelectorAll("body, .talk-head, .turn")) {
      if (observed.has(one)) continue;
      observed.add(one);
      observer.observe(one);
    }
  };
}

function converse(talk) {
  const guard = guardTaps();
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

  let heard = 0; // when the stream said something last
  function follow(turn) {
    const answer = turn.querySelector("[data-answer]");
    stream?.close();
    heard = performance.now();
    following = answer;
    ends.clear();
    stream = new EventSource(`/runs/${turn.dataset.turn}/live?after=${answer.dataset.after ?? 0}`);
    const mine = stream;
    stream.addEventListener("beat", () => {
      heard = performance.now();
      away(false);
    });
    stream.addEventListener("page", (event) => {
      heard = performance.now();
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
    guard();
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
    if (clock && element && !byId("away")) element.textContent = clockText(clock.seconds + (performance.now() - clock.at) / 1000);
  }, 100);
  // A connection that the network has forgotten says nothing, not even that it ended.
  const silent = () => {
    if (!stream || performance.now() - heard < SILENCE) return false;
    stream.close();
    stream = null;
    away(true);
    return true;
  };
  addEventListener("online", () => {
    heard = -SILENCE; // its connection is of the network before
  });
  let asked = 0; // when the parts were asked for last
  // The place among those that wait is no event; other tabs and devices may add turns.
  whileSeen(4000, () => {
    if (!silent() && !talk.querySelector(".turn.queued") && !byId("away") && performance.now() - asked < 20000) return null;
    asked = performance.now();
    return refresh().then(resume);
  });
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
  // From its beginning where it does not fit: nobody decides on the middle of a command.
  const showWhole = (one) => one.scrollIntoView({ block: one.offsetHeight < innerHeight / 2 ? "center" : "start" });
  const chosen = byId(`turn-${talk.dataset.chosen}`);
  const question = talk.querySelector(".approval form");
  if (question && !location.hash) showWhole(question.closest(".approval"));
  else if ("live" in talk.dataset && talk.dataset.chosen === talk.dataset.run && !location.hash) toEnd();
  else if (chosen && !location.hash && talk.querySelectorAll("[data-turn]").length > 1) chosen.scrollIntoView();
  look();
}
