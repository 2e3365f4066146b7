// Takes the one-time code from behind the # of the address, and removes it from there and from the history.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("code-form");
  const code = decodeURIComponent(location.hash.slice(1));
  if (!form || !code) return;
  history.replaceState(null, "", location.pathname);
  form.elements.code.value = code;
  form.submit();
});
