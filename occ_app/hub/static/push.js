// Subscribes this browser to notifications; the form carries the subscription to the hub.
"use strict";

document.addEventListener("DOMContentLoaded", async () => {
  const form = document.getElementById("subscribe");
  const state = document.getElementById("push-state");
  if (!form) return;
  const say = (text) => {
    state.textContent = text;
    state.hidden = !text;
  };
  const cannot = (text) => {
    form.hidden = true;
    say(text);
  };
  if (!window.isSecureContext) return cannot("Browsers notify only for pages with https and a certificate that they trust.");
  if (!("serviceWorker" in navigator) || !("PushManager" in window)) {
    return cannot("This browser has no push. On an iPhone or iPad, add the page to the home screen and open it there.");
  }
  const bytes = Uint8Array.from(atob(form.dataset.key.replace(/-/g, "+").replace(/_/g, "/")), (letter) => letter.charCodeAt(0));
  const registration = await navigator.serviceWorker.register("/service-worker.js");
  form.querySelector("button").disabled = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (await Notification.requestPermission() !== "granted") {
      return say("Notifications of this page are blocked in the browser's settings.");
    }
    try {
      const options = { userVisibleOnly: true, applicationServerKey: bytes };
      const former = await registration.pushManager.getSubscription();
      // One for another key, of an earlier home of the hub, is of no use.
      const same = former && String(new Uint8Array(former.options.applicationServerKey)) === String(bytes);
      if (former && !same) await former.unsubscribe();
      const subscription = same ? former : await registration.pushManager.subscribe(options);
      const { endpoint, keys } = subscription.toJSON();
      form.elements.endpoint.value = endpoint;
      form.elements.p256dh.value = keys.p256dh;
      form.elements.auth.value = keys.auth;
    } catch (error) {
      return say(`The browser could not be subscribed: ${error.message}`);
    }
    form.submit();
  });
});
