// Keeps the list of a page fresh while the page is looked at. A form that somebody uses in it is left alone.
"use strict";

const list = document.querySelector("[data-refresh]");
let asking = false;

async function refresh() {
  if (!list || asking || document.hidden || list.contains(document.activeElement)) return;
  asking = true;
  try {
    const reply = await fetch(list.dataset.refresh, { headers: { Accept: "text/html" } });
    if (reply.status === 401) location.reload();
    if (!reply.ok) return;
    const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
    if (!list.contains(document.activeElement)) list.replaceChildren(...fresh.body.childNodes);
  } catch {
    // the hub is away; the next time may do
  } finally {
    asking = false;
  }
}

setInterval(refresh, 5000);
document.addEventListener("visibilitychange", refresh);
