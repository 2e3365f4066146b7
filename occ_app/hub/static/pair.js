// Takes the one-time code from behind the # of the address, and removes it from there and from the history.
"use strict";

const code = decodeURIComponent(location.hash.slice(1));
if (code) {
  document.getElementById("code").value = code;
  history.replaceState(null, "", location.pathname);
  document.querySelector("#pair button").focus();
}
