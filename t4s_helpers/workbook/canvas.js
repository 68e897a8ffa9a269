// The canvas of the playground and of the explorers: a picture, what lies over it, and the text of it.
// Traits and the classes of the page's elements are described in canvas.py.

const HOST = { class: "t4s-canvas", tabindex: 0, "data-lm-suppress-shortcuts": true };
const LONGEST = 1024; // pixels of a picture that is sent to the kernel

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A bitmap that follows a trait with the bytes of an image file.
function bitmapOf(model, name, redraw) {
  const held = { bitmap: null, turn: 0 };
  held.load = async () => {
    const bytes = model.get(name), turn = ++held.turn;
    const bitmap = bytes?.byteLength ? await createImageBitmap(new Blob([bytes])).catch(() => null) : null;
    if (turn !== held.turn) return bitmap?.close(); // a newer one is on its way
    held.bitmap?.close();
    held.bitmap = bitmap;
    redraw();
  };
  model.on(`change:${name}`, held.load);
  return held;
}

function render({ model, el }) {
  const canvas = make("canvas", { class: "t4s-picture", role: "img", tabindex: 0 });
  const readout = make("div", { class: "t4s-readout", "aria-live": "polite" });
  const legend = make("div", { class: "t4s-legend" });
  const file = make("input", { class: "t4s-file", type: "file", accept: "image/*" });
  const load = make("label", { class: "t4s-load" }, "Drop or paste a picture here, or choose a file: ", file);
  const pane = make("pre", { class: "t4s-text", spellcheck: "false", role: "textbox",
                             "aria-multiline": "true", "aria-label": "the text of the answer" });
  const side = make("div", { class: "t4s-side" }, canvas, legend, readout, load);
  const host = make("div", HOST, side, pane);
  el.append(host);

  const draw2d = canvas.getContext("2d");
  const over = { cell: -1, run: -1 };
  let runOf = new Map(), paint = model.get("painted"), brushAt = null, sendTimer = 0, frame = 0;
  const later = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); };
  const picture = bitmapOf(model, "picture", later);
  const mask = bitmapOf(model, "mask", later), outline = bitmapOf(model, "outline", later);

  // --- drawing

  const colour = (k) => model.get("colours")[k] ?? "#777777";
  const shape = (cells) => [cells.length, cells.length ? cells[0].length : 0];
  const shows = (layer) => model.get("shown").includes(layer);

  function eachCell(cells, visit) {
    const [rows, cols] = shape(cells), w = canvas.width / cols, h = canvas.height / rows;
    cells.forEach((row, r) => row.forEach((value, c) => visit(value, c * w, r * h, w, h, r, c)));
  }

  function borders(inside, style, width) { // between the cells that are inside and those that are not
    const [rows, cols] = shape(model.get("grid"));
    const w = canvas.width / cols, h = canvas.height / rows;
    const has = (r, c) => r >= 0 && c >= 0 && r < rows && c < cols && inside(r, c);
    draw2d.beginPath();
    for (let r = 0; r <= rows; r++) for (let c = 0; c <= cols; c++) {
      if (c < cols && has(r, c) !== has(r - 1, c)) { draw2d.moveTo(c * w, r * h); draw2d.lineTo(c * w + w, r * h); }
      if (r < rows && has(r, c) !== has(r, c - 1)) { draw2d.moveTo(c * w, r * h); draw2d.lineTo(c * w, r * h + h); }
    }
    Object.assign(draw2d, { strokeStyle: style, lineWidth: width * devicePixelRatio });
    draw2d.stroke();
  }

  function tint(cells, alpha) {
    eachCell(cells, (k, x, y, w, h) => {
      draw2d.globalAlpha = alpha(k);
      if (k >= 0) { draw2d.fillStyle = colour(k); draw2d.fillRect(x, y, w, h); }
    });
    draw2d.globalAlpha = 1;
  }

  function draw() {
    const width = Math.min(model.get("width"), el.clientWidth || model.get("width"));
    const aspect = picture.bitmap ? picture.bitmap.height / picture.bitmap.width : 1;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.max(1, Math.round(width * aspect * devicePixelRatio));
    Object.assign(canvas.style, { width: `${width}px`, height: `${width * aspect}px` });
    const all = [0, 0, canvas.width, canvas.height], grid = model.get("grid");
    if (picture.bitmap) draw2d.drawImage(picture.bitmap, ...all);
    if (shows("grid") && grid.length) {
      tint(grid, (k) => (k ? 0.5 : 0.3));
      const labels = new Set(grid.flat().filter((k) => k > 0));
      for (const k of labels) borders((r, c) => grid[r][c] === k, colour(k), 2);
    }
    if (shows("confidence") && model.get("confidence").length) {
      draw2d.fillStyle = "rgba(255, 255, 255, 0.55)";
      draw2d.fillRect(...all);
      eachCell(model.get("confidence"), (p, x, y, w, h) => {
        Object.assign(draw2d, { globalAlpha: 0.9 * p, fillStyle: colour(1) });
        draw2d.fillRect(x, y, w, h);
      });
      draw2d.globalAlpha = 1;
    }
    if (paint.length) tint(paint, (k) => (k > 0 ? model.get("opacity") : 0));
    draw2d.globalAlpha = model.get("opacity");
    if (shows("mask") && mask.bitmap) draw2d.drawImage(mask.bitmap, ...all);
    draw2d.globalAlpha = 1;
    if (shows("outline") && outline.bitmap) draw2d.drawImage(outline.bitmap, ...all);
    if (grid.length) highlight(grid);
  }

  function highlight(grid) {
    const cols = grid[0].length, run = over.run >= 0 ? over.run : model.get("selected");
    const cells = new Set(model.get("runs")[run]?.cells ?? []);
    if (over.cell >= 0 && !cells.size) cells.add(over.cell);
    if (!cells.size) return;
    borders((r, c) => cells.has(r * cols + c), "#000000", 4);
    borders((r, c) => cells.has(r * cols + c), "#ffffff", 2);
  }

  // --- the text, its runs, and what the mouse or the arrow keys point at

  const joined = () => model.get("runs").map((run) => run.text).join("");

  function caret() { // characters before it, or -1 where it is elsewhere
    const chosen = el.ownerDocument.getSelection();
    if (!chosen?.rangeCount || !pane.contains(chosen.anchorNode)) return -1;
    const range = chosen.getRangeAt(0).cloneRange();
    range.setStart(pane, 0);
    return range.toString().length;
  }

  function putCaret(at) {
    const walker = document.createTreeWalker(pane, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); at -= node.length) {
      if (at <= node.length) return el.ownerDocument.getSelection().collapse(node, at);
    }
  }

  function writeText() {
    const runs = model.get("runs"), typing = pane.contains(document.activeElement);
    runOf = new Map(runs.flatMap((run, k) => run.cells.map((cell) => [cell, k])));
    if (typing && pane.isContentEditable && joined() !== pane.textContent && pane.dataset.typed) return later();
    delete pane.dataset.typed;
    const at = typing ? caret() : -1;
    pane.replaceChildren(...runs.map((run, k) => {
      const span = make("span", {}, run.text);
      if (run.label >= 0) Object.assign(span, { className: "t4s-run" }).dataset.run = k;
      if (run.label > 0) {
        span.style.setProperty("--t4s-label", colour(run.label));
        span.classList.add("t4s-labelled");
      }
      if (run.fault) { span.classList.add("t4s-fault"); span.title = run.fault; }
      return span;
    }));
    if (at >= 0) putCaret(at);
    if (!model.get("editable")) pane.scrollTop = pane.scrollHeight; // follow what is being written
    pane.hidden = !runs.length && !model.get("editable");
    light();
  }

  function light() {
    const run = over.run >= 0 ? over.run : model.get("selected");
    for (const span of pane.children) span.classList.toggle("t4s-lit", +span.dataset.run === run);
    const span = run >= 0 ? pane.querySelector(`[data-run="${run}"]`) : null;
    if (span && over.cell >= 0) pane.scrollTop = span.offsetTop - pane.offsetTop - pane.clientHeight / 2;
    canvas.dataset.cell = over.cell;
    readout.textContent = told();
    later();
  }

  function told() {
    const grid = model.get("grid"), cols = grid[0]?.length, labels = model.get("labels");
    if (over.cell < 0 || !cols) return model.get("message");
    const r = Math.floor(over.cell / cols), c = over.cell % cols, k = grid[r]?.[c];
    if (k === undefined) return "";
    const sure = model.get("confidence")[r]?.[c];
    const name = k < 0 ? "not written yet" : labels[k] ?? "";
    return `row ${r + 1}, column ${c + 1}: ${name}` + (sure === undefined ? "" : `, probability ${sure.toFixed(2)}`);
  }

  function point(cell, run) {
    if (cell === over.cell && run === over.run) return;
    Object.assign(over, { cell, run });
    light();
    model.set({ cell, run });
    model.save_changes();
  }

  function select(run) {
    model.set("selected", run === model.get("selected") ? -1 : run);
    model.save_changes();
  }

  function cellAt(event, cells) {
    const [rows, cols] = shape(cells), box = canvas.getBoundingClientRect();
    const c = Math.floor(((event.clientX - box.left) / box.width) * cols);
    const r = Math.floor(((event.clientY - box.top) / box.height) * rows);
    return r >= 0 && c >= 0 && r < rows && c < cols ? [r, c] : null;
  }

  const pointCell = (at) => {
    const cell = at ? at[0] * shape(model.get("grid"))[1] + at[1] : -1;
    point(cell, runOf.get(cell) ?? -1);
  };

  canvas.addEventListener("pointermove", (event) => {
    if (brushAt) return stroke(event);
    if (model.get("grid").length) pointCell(cellAt(event, model.get("grid")));
  });
  for (const [node, left] of [[canvas, "pointerleave"], [canvas, "blur"], [pane, "pointerleave"]]) {
    node.addEventListener(left, () => point(-1, -1));
  }
  canvas.addEventListener("click", () => {
    if (model.get("brush") < 0 && over.cell >= 0) {
      model.set({ clicked: over.cell });
      select(runOf.get(over.cell) ?? -1);
    }
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const [rows, cols] = shape(model.get("grid"));
    if (step && rows) {
      event.preventDefault();
      const at = over.cell < 0 ? [0, 0] : [Math.floor(over.cell / cols) + step[0], (over.cell % cols) + step[1]];
      pointCell([Math.min(Math.max(at[0], 0), rows - 1), Math.min(Math.max(at[1], 0), cols - 1)]);
    } else if (event.key === "Enter") canvas.click();
  });
  pane.addEventListener("pointerover", (event) => {
    const run = event.target.closest("[data-run]")?.dataset.run;
    point(-1, run === undefined ? -1 : +run);
  });
  pane.addEventListener("click", (event) => {
    const run = event.target.closest("[data-run]")?.dataset.run;
    if (run !== undefined) select(+run);
  });
  pane.addEventListener("input", () => {
    pane.dataset.typed = 1; // until runs arrive that say just this
    clearTimeout(sendTimer);
    sendTimer = setTimeout(() => { model.set("text", pane.textContent); model.save_changes(); }, 120);
  });

  // --- the brush

  function stroke(event) {
    const at = cellAt(event, paint);
    if (!at) return;
    const [rows, cols] = shape(paint), reach = model.get("brush_size") / 2;
    const steps = Math.max(1, Math.abs(at[0] - brushAt[0]), Math.abs(at[1] - brushAt[1]));
    for (let s = 1; s <= steps; s++) { // fast moves leave no gaps
      const [y, x] = [0, 1].map((i) => brushAt[i] + ((at[i] - brushAt[i]) * s) / steps);
      for (let r = Math.max(0, Math.ceil(y - reach)); r <= Math.min(rows - 1, y + reach); r++) {
        for (let c = Math.max(0, Math.ceil(x - reach)); c <= Math.min(cols - 1, x + reach); c++) {
          if (Math.hypot(r - y, c - x) <= reach) paint[r][c] = model.get("brush");
        }
      }
    }
    brushAt = at;
    later();
    sendTimer ||= setTimeout(sendPaint, 100);
  }

  function sendPaint() {
    sendTimer = 0;
    model.set("painted", paint.map((row) => [...row]));
    model.save_changes();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (model.get("brush") < 0 || !paint.length) return;
    try { canvas.setPointerCapture(event.pointerId); } catch { /* a made-up event of a test */ }
    paint = paint.map((row) => [...row]);
    brushAt = cellAt(event, paint);
    if (brushAt) stroke(event);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => { if (brushAt) { brushAt = null; clearTimeout(sendTimer); sendPaint(); } });
  }

  // --- pictures of the reader's own

  async function send(blob) {
    if (!blob || !model.get("accepts")) return;
    const name = blob.name || "pasted picture", bitmap = await createImageBitmap(blob).catch(() => null);
    const scale = bitmap ? LONGEST / Math.max(bitmap.width, bitmap.height) : 1;
    if (scale < 1) { // smaller here: a kernel's connection does not take large messages
      const small = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)),
                                        Math.max(1, Math.round(bitmap.height * scale)));
      const brush = small.getContext("2d");
      brush.imageSmoothingQuality = "high";
      brush.drawImage(bitmap, 0, 0, small.width, small.height);
      blob = await small.convertToBlob();
    }
    const size = bitmap ? [bitmap.width, bitmap.height] : [];
    bitmap?.close();
    if (blob.size > 8e6) return void (readout.textContent = `${name} is too large: give at most 8 MB.`);
    model.send({ type: "picture", name, size }, undefined, [await blob.arrayBuffer()]);
  }

  function take(event, data) {
    const files = [...(data?.files ?? [])], image = files.find((one) => one.type.startsWith("image/")) ?? files[0];
    if (!image || !model.get("accepts")) return;
    event.preventDefault();
    event.stopPropagation();
    send(image);
  }

  file.addEventListener("change", () => { send(file.files[0]); file.value = ""; });
  host.addEventListener("dragover", (event) => {
    if (model.get("accepts")) { event.preventDefault(); host.classList.add("t4s-dragged"); }
  });
  host.addEventListener("dragleave", () => host.classList.remove("t4s-dragged"));
  host.addEventListener("drop", (event) => {
    host.classList.remove("t4s-dragged");
    take(event, event.dataTransfer);
  });
  host.addEventListener("paste", (event) => take(event, event.clipboardData));

  model.on("msg:custom", (told, buffers) => {
    if (told.type !== "save") return;
    const link = make("a", { href: URL.createObjectURL(new Blob([buffers[0]])), download: told.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // --- following the traits

  function follow() {
    canvas.setAttribute("aria-label", model.get("alt"));
    canvas.classList.toggle("t4s-brush", model.get("brush") >= 0);
    load.hidden = !model.get("accepts");
    pane.contentEditable = model.get("editable") ? "plaintext-only" : "false";
    const names = model.get("labels").map((name, k) => [name, k]).slice(1);
    const swatch = (k) => make("i", { class: "t4s-swatch", style: `background: ${colour(k)}` });
    legend.replaceChildren(...names.map(([name, k]) => make("span", { "data-label": k }, swatch(k), name)));
    light();
  }

  model.on("change:runs", writeText);
  model.on("change:painted", () => { if (!brushAt) { paint = model.get("painted"); later(); } });
  for (const name of ["alt", "brush", "accepts", "editable", "labels", "colours"]) model.on(`change:${name}`, follow);
  for (const name of ["grid", "confidence", "shown", "opacity", "width", "selected", "message"]) {
    model.on(`change:${name}`, light);
  }
  const resized = new ResizeObserver(later);
  resized.observe(el);
  for (const one of [picture, mask, outline]) one.load();
  follow();
  writeText();
  return () => { resized.disconnect(); for (const one of [picture, mask, outline]) one.bitmap?.close(); };
}

export default { render };
