// Shows the notifications that the hub sends, and opens their page. It keeps no page and answers no request.
"use strict";

self.addEventListener("push", (event) => {
  let sent = {};
  try {
    sent = event.data.json();
  } catch {
    // without data or not JSON: the title alone
  }
  const { title, body, tag, url } = sent;
  const shown = { body: body || "", tag: tag || undefined, icon: "/static/icon-192.png", data: { url: url || "/" } };
  event.waitUntil(self.registration.showNotification(title || "OCC", shown));
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  const target = new URL(event.notification.data?.url || "/", self.location.origin);
  if (target.origin !== self.location.origin) return;
  event.waitUntil((async () => {
    const open = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
    const there = open.find((page) => page.url === target.href) || open[0];
    if (!there) return self.clients.openWindow(target.href);
    await there.focus();
    return there.url === target.href ? undefined : there.navigate(target.href);
  })());
});
