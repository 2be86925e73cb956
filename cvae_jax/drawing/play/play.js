// The page: the text in one hand, your own hand, the way between two, and what makes one.

const byId = (id) => document.getElementById(id);
const clamp = (x, least, most) => Math.min(Math.max(x, least), most);

const meta = JSON.parse(byId("meta").textContent);
const [HEIGHT, WIDTH, CHANNELS] = meta.image_shape, Z = meta.latent_dim;
const NAMES = meta.class_names, ALL = NAMES.map((_, i) => i);
// Classes are typed as characters, or where their names are longer, by their numbers.
const ONE_EACH = NAMES.every((name) => [...name].length === 1), FEW = NAMES.length <= 10;
const SPACE = ONE_EACH || FEW ? "" : " ";
const MOST_TEXT = 2000, LEAST_SIZE = 24; // characters; pixels of the screen
const FIRST_SLIDERS = 8, END = 2.5; // of a direction, in standard deviations of the prior
const INK = [28, 28, 34], FINER = 4; // pixels of a sharp picture for one of the model's
const SHARPER = Uint8ClampedArray.from({ length: 256 }, (_, i) => {
  const share = clamp((i / 255 - 0.2) / 0.6, 0, 1);
  return 255 * share * share * (3 - 2 * share);
});

// ---------------------------------------------------------------- the model, in workers

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const { buffer } = bytesOf(byId("weights").textContent);
const model = makeModel(meta, buffer); // in this page, for where workers are not allowed
const jobs = new Map();
let workers = startWorkers(), turn = 0, jobNumber = 0;

function startWorkers() {
  try {
    const source = new Blob([byId("model").textContent], { type: "text/javascript" });
    const url = URL.createObjectURL(source);
    return Array.from({ length: clamp(navigator.hardwareConcurrency || 2, 1, 4) }, () => {
      const worker = new Worker(url);
      worker.onmessage = ({ data: { id, result } }) => {
        jobs.get(id)?.resolve(result);
        jobs.delete(id);
      };
      worker.onerror = () => { // for example refused by the site that shows this page
        workers = [];
        for (const { task, args, resolve } of jobs.values()) resolve(compute(task, args));
        jobs.clear();
      };
      worker.postMessage({ meta, buffer });
      return worker;
    });
  } catch {
    return [];
  }
}

async function compute(task, args) {
  await new Promise((resolve) => setTimeout(resolve)); // so that the page can answer meanwhile
  return model[task](...args);
}

function submit(task, args) {
  if (!workers.length) return compute(task, args);
  return new Promise((resolve) => {
    jobs.set(++jobNumber, { task, args, resolve });
    workers[turn++ % workers.length].postMessage({ id: jobNumber, task, args });
  });
}

// Return a result for each label; the workers share them.
async function forLabels(task, input, labels) {
  const each = Math.ceil(labels.length / Math.max(workers.length, 1)), parts = [];
  for (let i = 0; i < labels.length; i += each) {
    parts.push(submit(task, [input, labels.slice(i, i + each)]));
  }
  return (await Promise.all(parts)).flat();
}
const decode = (latent, labels) => forLabels("decode", latent, labels);
const encode = (image, labels) => forLabels("encode", image, labels);

// Return a function that does `work`; called again meanwhile, it does it once more at the end.
function latest(work) {
  let running = null, again = false;
  async function repeat() {
    try {
      while (again) {
        again = false;
        await work();
      }
    } finally {
      running = null;
    }
  }
  return () => {
    again = true;
    running ??= repeat();
    return running;
  };
}

// ---------------------------------------------------------------- hands

function normals(seed) { // mulberry32 and Box-Muller
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length: Z }, () =>
    Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// A hand has a name for the address: a seed, or "z" and its numbers in 1024ths as base64.
function handOfName(name) {
  if (/^\d{1,10}$/.test(name)) return { name, latent: normals(Number(name) | 0) };
  try {
    const bytes = bytesOf(name.slice(1).replace(/-/g, "+").replace(/_/g, "/"));
    if (name[0] !== "z" || bytes.length !== 2 * Z) return null;
    const view = new DataView(bytes.buffer);
    const latent = new Float32Array(Z).map((_, i) => view.getInt16(2 * i) / 1024);
    return { name, latent };
  } catch { // not base64
    return null;
  }
}

function handOfLatent(latent) {
  const view = new DataView(new ArrayBuffer(2 * latent.length));
  latent.forEach((x, i) => view.setInt16(2 * i, clamp(Math.round(1024 * x), -32768, 32767)));
  const text = btoa(String.fromCharCode(...new Uint8Array(view.buffer)));
  return handOfName("z" + text.replace(/\+/g, "-").replace(/\//g, "_").replace(/=/g, ""));
}

const opening = model.tensor("hands"); // of two images of the data set
const openingHands = [0, 1].map((i) => handOfLatent(opening.subarray(i * Z, (i + 1) * Z)));
const shuffled = () => handOfName(String(Math.floor(Math.random() * 1e9)));

const table = model.tensor("direction");
const directions = meta.kl.map((_, i) => table.subarray(i * Z, (i + 1) * Z));
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

// Return the hand at a place on the arc between two.
function between(one, two, mix) {
  const norms = Math.sqrt(dot(one, one) * dot(two, two));
  const angle = Math.acos(clamp(norms ? dot(one, two) / norms : 1, -1, 1));
  const sine = Math.sin(angle);
  const [a, b] = sine < 1e-3
    ? [1 - mix, mix] : [Math.sin((1 - mix) * angle) / sine, Math.sin(mix * angle) / sine];
  return one.map((x, i) => a * x + b * two[i]);
}

const state = {
  text: "", hands: [], mix: 0, temperature: 1, offsets: directions.map(() => 0), grey: false,
};

function currentHand() {
  const [one, two] = state.hands;
  const latent = between(one.latent, two.latent, state.mix).map((x) => state.temperature * x);
  directions.forEach((direction, i) => {
    for (let k = 0; k < Z; k++) latent[k] += state.offsets[i] * direction[k];
  });
  return latent;
}

// ---------------------------------------------------------------- pictures

// Return an image as a small canvas of ink: sharp where ink is likelier than paper, or as grey as
// ink is likely. Colours are as they are.
function inked(image) {
  const small = canvasOf(WIDTH, HEIGHT), pixels = new ImageData(WIDTH, HEIGHT);
  for (let i = 0; i < HEIGHT * WIDTH; i++) {
    for (let k = 0; k < 3; k++) {
      pixels.data[4 * i + k] = CHANNELS === 3 ? 255 * image[3 * i + k] : INK[k];
    }
    pixels.data[4 * i + 3] = CHANNELS === 3 ? 255 : 255 * image[i];
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  if (CHANNELS === 3 || state.grey) return small;
  const large = canvasOf(FINER * WIDTH, FINER * HEIGHT);
  const context = large.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, large.width, large.height);
  const finer = context.getImageData(0, 0, large.width, large.height);
  for (let i = 3; i < finer.data.length; i += 4) finer.data[i] = SHARPER[finer.data[i]];
  context.putImageData(finer, 0, 0);
  return large;
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

// Draw images side by side, as large as they fit, `null` for a space.
function paint(canvas, images, { width, most, height = most, margin = 0, paper, scale }) {
  const ratio = WIDTH / HEIGHT, leading = Math.min(1, meta.box / HEIGHT + 0.12);
  const pitch = meta.width + 0.04;
  let size = most + 1, columns, rows;
  do {
    size--;
    columns = Math.max(1, Math.floor((width / (size * ratio) - 1) / pitch + 1));
    rows = Math.max(1, Math.ceil(images.length / columns));
  } while (size > LEAST_SIZE
    && ((rows * leading + 1 - leading) * size > height || size * ratio > width));
  columns = Math.ceil(images.length / rows);
  const step = size * ratio * pitch, line = size * leading;
  const wide = Math.ceil((columns - 1) * step + size * ratio + 2 * margin);
  const high = Math.ceil((rows - 1) * line + size + 2 * margin);
  canvas.width = Math.max(1, wide * scale);
  canvas.height = Math.max(1, high * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.scale(scale, scale);
  if (paper) {
    context.fillStyle = paper;
    context.fillRect(0, 0, wide, high);
  }
  images.forEach((image, i) => {
    const x = margin + (i % columns) * step, y = margin + Math.floor(i / columns) * line;
    if (image) context.drawImage(image, x, y, size * ratio, size);
  });
}

// Paint onto a canvas of the page, as wide as its container or as told.
function show(canvas, images, settings) {
  const scale = Math.min(window.devicePixelRatio || 1, 3);
  paint(canvas, images, { width: canvas.parentElement.clientWidth, scale, ...settings });
  canvas.style.width = `${canvas.width / scale}px`;
  canvas.style.height = `${canvas.height / scale}px`;
}

// ---------------------------------------------------------------- the text

// Return the class of a character or a number, -1 for none. A letter without a class of its own
// has that of the other case.
function classOf(part) {
  if (!ONE_EACH) return /^\d+$/.test(part) && Number(part) < NAMES.length ? Number(part) : -1;
  const places = [part, part.toUpperCase(), part.toLowerCase()].map((one) => NAMES.indexOf(one));
  return places.find((place) => place >= 0) ?? -1;
}

// Return the classes of a text, null for a space, and how many characters are none.
function readText(text) {
  const plain = text.normalize("NFKC").slice(0, MOST_TEXT);
  const items = [];
  let left = 0;
  for (const part of (ONE_EACH || FEW ? [...plain] : plain.match(/\d+|\D/gu)) || []) {
    const label = classOf(part);
    if (label >= 0) items.push(label);
    else if (/^\s+$/.test(part)) items.push(null);
    else left++;
  }
  const labels = [...new Set(items)].filter((label) => label !== null);
  return { items, labels, left };
}

let sheet = [];
const redraw = latest(async () => {
  const { items, labels, left } = readText(state.text);
  const images = (await decode(currentHand(), labels)).map(inked);
  sheet = items.map((label) => (label === null ? null : images[labels.indexOf(label)]));
  show(byId("text"), sheet, { height: clamp(0.2 * innerHeight, 110, 250), most: 160 });
  const written = items.map((label) => NAMES[label] ?? " ").join(ONE_EACH ? "" : " ");
  byId("text").setAttribute("aria-label", `${labels.length ? written : "nothing"}, in one hand`);
  const known = ONE_EACH ? `${NAMES[0]} to ${NAMES.at(-1)}` : `0 to ${NAMES.length - 1}`;
  const what = left > 1 ? "characters" : "character";
  const spaced = SPACE && ", with spaces between them";
  byId("note").textContent = !labels.length ? `Type some {{things}}, ${known}${spaced}.`
    : left ? `${left} ${what} left out: this model writes ${known} only.` : "";
  byId("save").disabled = !labels.length;
  sample = labels[0] ?? sample;
  drawEnds();
});

function savePicture() {
  const canvas = canvasOf(1, 1), margin = 40;
  paint(canvas, sheet, { width: 1520, height: 4000, most: 220, margin, paper: "#fff", scale: 1 });
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "handwriting.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

// ---------------------------------------------------------------- two hands, and what makes one

const showHands = latest(async () => {
  const { labels } = readText(state.text);
  const some = (labels.length ? labels : ALL).slice(0, 3);
  for (const [i, hand] of state.hands.entries()) {
    const images = (await decode(hand.latent, some)).map(inked);
    show(byId(`hand-${i}`), images, { width: 150, most: 60 });
  }
});

const sliders = meta.kl.map((nats, i) => {
  const row = document.createElement("div");
  row.className = "direction";
  const end = '<canvas class="ink" width="1" height="1"></canvas>';
  row.innerHTML =
    `${end}<input type="range" min="-3" max="3" step="0.01">${end}<span class="nats"></span>`;
  const [low, input, high, number] = row.children;
  number.textContent = `${nats.toFixed(1)} nats`;
  input.setAttribute("aria-label", `Direction ${i + 1}, ${nats.toFixed(1)} nats`);
  input.addEventListener("input", () => {
    const offset = state.offsets[i] + Number(input.value) - dot(currentHand(), directions[i]);
    state.offsets[i] = Math.round(100 * offset) / 100; // as in the address
    changed({ sliders: false });
  });
  byId(i < FIRST_SLIDERS ? "sliders" : "more-sliders").append(row);
  return { input, ends: [[low, -END], [high, END]] };
});

// Draw what both ends of each direction do to the average hand.
let drawn = "", sample = 0;
const drawEnds = latest(async () => {
  const label = sample, wanted = `${sample} ${state.grey}`;
  if (wanted === drawn) return;
  for (const [i, { ends }] of sliders.entries()) {
    for (const [canvas, value] of ends) {
      const [image] = await decode(directions[i].map((x) => value * x), [label]);
      show(canvas, [inked(image)], { width: 40, most: 40 });
    }
    if (wanted !== `${sample} ${state.grey}`) return;
  }
  drawn = wanted;
});

function moveSliders() {
  byId("mix").value = state.mix;
  byId("temperature").value = state.temperature;
  byId("temperature-value").textContent = state.temperature.toFixed(2);
  byId("grey").checked = state.grey;
  const hand = currentHand();
  sliders.forEach(({ input }, i) => {
    input.value = dot(hand, directions[i]);
  });
}

// ---------------------------------------------------------------- your hand

const pad = byId("pad"), pen = pad.getContext("2d", { willReadFrequently: true });
let last = null, pointer = null, reading = null, mine = null;

function stroke(from, to) {
  pen.lineWidth = 22;
  pen.lineCap = "round";
  pen.strokeStyle = `rgb(${INK})`;
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(to[0] + 0.01, to[1]); // a point has no length, and would not be drawn
  pen.stroke();
  reading = null;
  readDrawing();
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) * (pad.width / box.width),
    (event.clientY - box.top) * (pad.height / box.height)];
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button || pointer !== null) return; // a second finger, or a palm
  pointer = event.pointerId;
  pad.setPointerCapture(pointer);
  last = place(event);
  stroke(last, last);
});
pad.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const one of events.length ? events : [event]) {
    const to = place(one);
    stroke(last, to);
    last = to;
  }
});
for (const name of ["pointerup", "pointercancel"]) {
  pad.addEventListener(name, (event) => {
    if (event.pointerId === pointer) pointer = null;
  });
}

// With the keyboard the pen is a dot on the pad, hollow while it is lifted.
let nib = [140, 40], isDown = true;
function showNib() {
  const { style, classList } = byId("nib");
  [style.left, style.top] = nib.map((x) => `${x / 2.8}%`);
  classList.toggle("lifted", !isDown);
  byId("pen-state").textContent = isDown ? "" : "The pen is lifted.";
}
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
pad.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's own
  if (event.key === " ") isDown = !isDown;
  else if (event.key in ARROWS) {
    const to = nib.map((x, i) => clamp(x + 10 * ARROWS[event.key][i], 20, 260));
    if (isDown) stroke(nib, to);
    nib = to;
  } else return;
  showNib();
  event.preventDefault();
});

// Return the drawing as the images of the training are: what it shows scaled to the same longer
// side by averaging areas, its centre of mass in the middle. Null where there is nothing.
function prepare(ink, width, height) {
  let top = height, bottom = -1, left = width, right = -1;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (ink[y * width + x] < 0.2) continue;
      if (y < top) top = y;
      if (x < left) left = x;
      if (x > right) right = x;
      bottom = y;
    }
  }
  if (bottom < 0) return null;
  const rows = bottom - top + 1, columns = right - left + 1;
  const shrink = meta.box / Math.max(rows, columns);
  const h = clamp(Math.round(rows * shrink), 1, HEIGHT);
  const w = clamp(Math.round(columns * shrink), 1, WIDTH);
  const vertical = areas(top, rows, h), horizontal = areas(left, columns, w);
  const small = new Float32Array(h * w);
  let mass = 0, massY = 0, massX = 0;
  vertical.forEach((ys, i) => horizontal.forEach((xs, j) => {
    let sum = 0;
    for (const [y, a] of ys) for (const [x, b] of xs) sum += a * b * ink[y * width + x];
    small[i * w + j] = sum;
    mass += sum;
    massY += sum * i;
    massX += sum * j;
  }));
  const y = clamp(Math.round(HEIGHT / 2 - massY / mass), 0, HEIGHT - h);
  const x = clamp(Math.round(WIDTH / 2 - massX / mass), 0, WIDTH - w);
  const image = new Float32Array(HEIGHT * WIDTH);
  for (let i = 0; i < h; i++) image.set(small.subarray(i * w, (i + 1) * w), (y + i) * WIDTH + x);
  return image;
}

// Return for each of `parts` equal stretches which places it covers, and by how much of itself.
function areas(start, length, parts) {
  const each = length / parts;
  return Array.from({ length: parts }, (_, i) => {
    const from = i * each, to = from + each, covered = [];
    for (let place = Math.floor(from); place < Math.min(Math.ceil(to), length); place++) {
      const share = (Math.min(to, place + 1) - Math.max(from, place)) / each;
      covered.push([start + place, share]);
    }
    return covered;
  });
}

function drawnImage() {
  const { data, width, height } = pen.getImageData(0, 0, pad.width, pad.height);
  const ink = new Float32Array(width * height).map((_, i) => data[4 * i + 3] / 255);
  return prepare(ink, width, height);
}

const longest = Math.max(...NAMES.map((name) => name.length));
byId("bars").style.setProperty("--name", `${clamp(longest, 2, 12)}ch`);
const bars = ALL.map((label) => {
  const bar = document.createElement("button");
  bar.type = "button";
  bar.className = "bar";
  bar.innerHTML = `<span></span><i><b></b></i><span></span>`;
  bar.firstElementChild.textContent = NAMES[label];
  bar.addEventListener("click", () => {
    reading = label;
    readDrawing();
  });
  byId("bars").append(bar);
  return bar;
});

function percent(share) {
  const text = share > 0.99 ? "> 99 %" : share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`;
  return text.replaceAll(" ", "\u00a0");
}

const readDrawing = latest(async () => {
  const image = drawnImage();
  const found = image && (await encode(image, ALL));
  const bounds = (found || []).map(({ bound }) => (Number.isFinite(bound) ? bound : -1e30));
  const highest = Math.max(...bounds);
  const weights = bounds.map((bound) => Math.exp(bound - highest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const belief = weights.map((weight) => weight / total);
  const best = bounds.indexOf(highest), label = reading ?? best;
  mine = found && handOfLatent(found[label].latent);
  const images = mine ? (await decode(mine.latent, ALL)).map(inked) : [];
  const height = 0.55 * byId("mine").parentElement.clientWidth; // so that ten are two rows
  show(byId("mine"), images, { height, most: 110 });
  bars.forEach((bar, i) => {
    bar.disabled = !found;
    bar.setAttribute("aria-pressed", Boolean(found) && i === label);
    bar.querySelector("b").style.width = `${100 * (belief[i] || 0)}%`;
    bar.lastElementChild.textContent = found ? percent(belief[i]) : "";
    bar.setAttribute("aria-label", found ? `${NAMES[i]}, ${percent(belief[i])}` : NAMES[i]);
  });
  byId("belief").textContent = found
    ? `The model reads it as ${NAMES[best]} (${percent(belief[best])})` +
      (label === best ? "." : `, you as ${NAMES[label]}.`)
    : "What the model thinks you drew will stand here.";
  byId("honest").textContent = found && meta.usual_bound !== null && highest < meta.usual_bound
    ? "Yet it explains this drawing worse than 99 of 100 test images, so do not trust its belief."
    : "The belief is the model's own: it reads the drawing as each class in turn and compares " +
      "how well it can explain it. It can be wrong, and it takes anything for a {{thing}}. If you " +
      "meant another one, choose that.";
  for (const button of document.querySelectorAll("button.mine")) button.disabled = !found;
});

// Put an image on the pad, as large as a drawing.
function putOnPad(image) {
  pen.clearRect(0, 0, pad.width, pad.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(inked(image), 0, 0, pad.width, pad.height);
  reading = null;
  return readDrawing();
}

// ---------------------------------------------------------------- state

let timer = 0;
function changed({ sliders: moves = true, hands = false } = {}) {
  if (moves) moveSliders();
  if (hands) showHands();
  redraw();
  clearTimeout(timer);
  timer = setTimeout(writeAddress, 250);
}

function writeAddress() {
  const { text, hands: [{ name: a }, { name: b }], mix, temperature, offsets, grey } = state;
  const values = { text, a, b, mix, temperature, grey: Number(grey) };
  if (offsets.some(Boolean)) values.directions = offsets.join();
  try {
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
  } catch { // a page inside another one may have no address of its own
    byId("address").hidden = true;
  }
}

function readAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const number = (text, usual, least, most) => {
    const value = Number.parseFloat(text);
    return Number.isFinite(value) ? clamp(value, least, most) : usual;
  };
  const usual = (ONE_EACH ? NAMES : ALL).slice(0, 10).join(SPACE);
  state.text = (values.get("text") ?? usual).slice(0, MOST_TEXT);
  state.hands = ["a", "b"].map((key, i) => handOfName(values.get(key) ?? "") ?? openingHands[i]);
  state.mix = number(values.get("mix"), 0, 0, 1);
  state.temperature = number(values.get("temperature"), 1, 0, 2);
  state.grey = number(values.get("grey"), Number(!meta.is_ink), 0, 1) === 1;
  const offsets = (values.get("directions") ?? "").split(",");
  state.offsets = directions.map((_, i) => number(offsets[i], 0, -99, 99));
  byId("typed").value = state.text;
  changed({ hands: true });
}

byId("typed").addEventListener("input", ({ target }) => {
  state.text = target.value;
  changed({ hands: true });
});
byId("shuffle").addEventListener("click", () => {
  state.hands = [shuffled(), shuffled()];
  state.offsets.fill(0);
  changed({ hands: true });
});
for (const button of document.querySelectorAll("[data-shuffle]")) {
  button.addEventListener("click", () => {
    state.hands[button.dataset.shuffle] = shuffled();
    changed({ hands: true });
  });
}
document.querySelectorAll("button.mine").forEach((button, i) => {
  button.addEventListener("click", () => {
    state.hands[i] = mine;
    state.mix = i;
    state.temperature = 1;
    state.offsets.fill(0);
    changed({ hands: true });
  });
});
for (const name of ["mix", "temperature"]) {
  byId(name).addEventListener("input", ({ target }) => {
    state[name] = Number(target.value);
    changed();
  });
}
byId("grey").addEventListener("change", ({ target }) => {
  state.grey = target.checked;
  changed({ hands: true });
  readDrawing();
});
byId("reset").addEventListener("click", () => {
  state.offsets.fill(0);
  changed();
});
byId("save").addEventListener("click", savePicture);
byId("clear").addEventListener("click", () => {
  pen.clearRect(0, 0, pad.width, pad.height);
  readDrawing();
});
byId("example").addEventListener("click", async () => {
  const label = Math.floor(Math.random() * NAMES.length);
  const hand = shuffled().latent.map((x) => 0.8 * x);
  putOnPad((await decode(hand, [label]))[0]);
});
window.addEventListener("hashchange", readAddress);
window.addEventListener("resize", () => {
  redraw();
  showHands();
  readDrawing();
});

for (const [name, text] of [
  ["size", meta.latent_dim], ["box", meta.box],
  ["images", meta.usual_bound === null ? "the model's own samples" : "test images"],
]) {
  for (const element of document.getElementsByClassName(name)) element.textContent = text;
}
const remove = (selector) => document.querySelectorAll(selector).forEach((one) => one.remove());
if (!meta.flow) remove(".flow");
remove(meta.flow ? ".axes" : ".components");
if (!directions.length) remove("#directions");
if (directions.length <= FIRST_SLIDERS) remove("#more");
if (!FEW || !/^\d+$/.test(NAMES.join(""))) byId("typed").inputMode = "text";
byId("drawing").hidden = CHANNELS !== 1;
document.body.classList.toggle("colour", CHANNELS !== 1);
readAddress();
readDrawing();
showNib();
// For the console, and for tests.
window.play = { decode, encode, prepare, drawnImage, readDrawing, redraw, inked, state };
