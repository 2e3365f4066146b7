// The form for a new task: what it sends, and a folder as a zip that is made here.
"use strict";

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
