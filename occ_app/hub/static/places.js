// Keeps the list of a page fresh while the page is visible. A form in it that has the focus stays as it is.
"use strict";

const list = document.querySelector("[data-refresh]");

if (list) whileSeen(5000, async () => {
  const used = () => list.contains(document.activeElement);
  const news = used() ? null : await fetched(list.dataset.refresh);
  if (news && !used()) becomeChildren(list, list.firstChild, [...news.childNodes]);
});
