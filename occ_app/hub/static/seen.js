// Reports to the hub that this run is being looked at, so that its owner is not notified of it as well.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const run = document.getElementById("talk");
  const csrf = document.querySelector("input[name=csrf]");
  if (!run || !csrf) return;
  const page = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const report = () => {
    const body = new URLSearchParams({ csrf: csrf.value, page, state: document.hidden ? "hidden" : "visible" });
    fetch(`/runs/${run.dataset.run}/seen`, { method: "POST", body, keepalive: true }).catch(() => {}); // the next one comes
  };
  document.addEventListener("visibilitychange", report);
  setInterval(() => document.hidden || report(), 20000);
  addEventListener("pagehide", () => {
    const body = new URLSearchParams({ csrf: csrf.value, page, state: "hidden" });
    navigator.sendBeacon(`/runs/${run.dataset.run}/seen`, body);
  });
  addEventListener("pageshow", () => document.hidden || report());
});
