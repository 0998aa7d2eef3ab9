"use strict";
// Names of files, labels and card texts are untrusted: they are set with textContent only.

const byId = (id) => document.getElementById(id);
const N_LINES = 5;
const N_TOP = 8;
let token = "";

function make(tag, { text, parent, ...attributes } = {}, children = []) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  if (parent) parent.append(element);
  return element;
}

const clock = (seconds) => {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
};
const predictedLabels = (result) => [result.prediction].flat();

function request(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers });
}

async function loadCard() {
  const response = await request("v1/card");
  byId("token-form").hidden = response.status !== 401;
  if (!response.ok) {
    byId("about").textContent = response.status === 401 ? "This server needs a token." : "The model card is missing.";
    return;
  }
  showCard(await response.json());
}

function showCard(card) {
  document.title = byId("title").textContent = card.task;
  const kind = card.kind === "multi" ? "tags" : "labels";
  byId("about").textContent = `${card.labels.length} ${kind} for whole tracks: ${card.labels.slice(0, 12).join(", ")}`
    + (card.labels.length > 12 ? ", …" : "");
  const rows = [];
  const evaluation = card.evaluation;
  for (const [name, [value, low, high]] of Object.entries(evaluation?.metrics ?? {})) {
    rows.push([name, `${value.toFixed(3)} (95 % ${low.toFixed(3)} to ${high.toFixed(3)})`]);
  }
  rows.push(evaluation ? ["Evaluated on", `${evaluation.tracks} tracks. ${evaluation.note}`] : ["Evaluation", "none"]);
  if (card.intended_use) rows.push(["Intended use", card.intended_use]);
  for (const limit of card.limits ?? []) rows.push(["Limit", limit]);
  if (card.model) rows.push(["Model", `${card.model.architecture}, ${card.model.parameters.toLocaleString("en")} parameters`]);
  if (card.data) rows.push(["Trained on", `${card.data.training_tracks} tracks`]);
  const body = make("tbody");
  for (const [name, value] of rows) {
    make("tr", { parent: body }, [make("th", { text: name, scope: "row" }), make("td", { text: value })]);
  }
  byId("card-body").replaceChildren(make("table", {}, [body]));
}

async function send(files) {
  if (!files.length) return;
  const status = byId("status");
  status.textContent = files.length === 1 ? `Predicting ${files[0].name} …` : `Predicting ${files.length} tracks …`;
  for (const file of files) {
    const form = new FormData();
    form.append("files", file);
    try {
      const response = await request("v1/predict", { method: "POST", body: form });
      const body = await response.json().catch(() => ({ error: `the server responded with status ${response.status}` }));
      const result = body.tracks ? body.tracks[0] : { file: file.name, error: body.error };
      byId("results").prepend(showTrack(result, file));
    } catch {
      byId("results").prepend(showTrack({ file: file.name, error: "the server cannot be reached" }, file));
    }
  }
  status.textContent = files.length === 1 ? "Done." : `Done: ${files.length} tracks.`;
}

// Highest first. Objects do not keep the order of keys that look like numbers, so the scores are sorted here.
const ranked = (scores) => Object.entries(scores).sort((a, b) => b[1] - a[1]);

function showTrack(result, file) {
  const track = make("article", { class: "track" });
  make("h2", { text: result.file, parent: track });
  if (result.error) {
    make("p", { text: result.error, class: "prediction failed", parent: track });
    return track;
  }
  make("p", { text: predictedLabels(result).join(", ") || "no tag", class: "prediction", parent: track });
  const player = makePlayer(track, file);
  const labels = ranked(result.scores).map(([label]) => label).filter((label) => label in result.timeline.scores).slice(0, N_LINES);
  const lines = makeLines(result, labels, player);
  const parts = makeParts(result, player);
  track.append(lines.element, makeLegend(labels), parts.element, makeTop(result));
  player.onTime((seconds) => {
    lines.moveTo(seconds);
    parts.moveTo(seconds);
  });
  make("p", {
    text: `${clock(result.duration_s)} of music, ${result.aggregator.replaceAll("_", " ")} over ${result.windows} windows.`,
    class: "faint", parent: track,
  });
  return track;
}

// Plays audio; a spectrogram has no player, but a click still moves the cursor.
function makePlayer(track, file) {
  const listeners = [];
  const notify = (seconds) => listeners.forEach((listener) => listener(seconds));
  const player = { onTime: (listener) => listeners.push(listener), seek: notify };
  if (file.name.toLowerCase().endsWith(".npy")) return player;
  const audio = make("audio", { controls: "", preload: "metadata", "aria-label": `Play ${file.name}`, parent: track });
  audio.src = URL.createObjectURL(file);
  audio.addEventListener("timeupdate", () => notify(audio.currentTime));
  player.seek = (seconds) => {
    audio.currentTime = seconds;
    notify(seconds);
    audio.play().catch(() => {});
  };
  return player;
}

function makeLines(result, labels, player) {
  const svgTag = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const edges = result.timeline.edges_s;
  const svg = svgTag("svg", { viewBox: `0 0 ${result.duration_s} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  labels.forEach((label, i) => {
    const points = result.timeline.scores[label].map((score, k, scores) => {
      if (score === null) return "";
      const y = (0.97 - 0.94 * score).toFixed(4);
      return `${k && scores[k - 1] !== null ? "L" : "M"}${edges[k]} ${y}L${edges[k + 1]} ${y}`;
    });
    svg.append(svgTag("path", { d: points.join(""), class: `series${i + 1}` }));
  });
  const cursor = make("div", { class: "cursor" });
  const element = make("div", { class: "lines" }, [svg, cursor]);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    player.seek(((event.clientX - box.left) / box.width) * result.duration_s);
  });
  const moveTo = (seconds) => {
    cursor.style.left = `${Math.min(100 * seconds / result.duration_s, 100)}%`;
  };
  return { element, moveTo };
}

function makeParts(result, player) {
  const element = make("div", { class: "parts", role: "group", "aria-label": "Parts of the track" });
  const buttons = result.parts.map((part) => {
    const [label, score] = ranked(part.labels)[0];
    const name = `${clock(part.begin_s)}-${clock(part.end_s)} ${label} ${score.toFixed(2)}`;
    const all = ranked(part.labels).map(([other, value]) => `${other} ${value.toFixed(2)}`).join(", ");
    const button = make("button", { text: name, type: "button", title: all, parent: element });
    button.style.flexGrow = part.end_s - part.begin_s;
    button.addEventListener("click", () => player.seek(part.begin_s));
    return button;
  });
  const moveTo = (seconds) => result.parts.forEach((part, i) => {
    buttons[i].setAttribute("aria-current", String(part.begin_s <= seconds && seconds < part.end_s));
  });
  return { element, moveTo };
}

function makeLegend(labels) {
  const items = labels.map((label, i) => make("li", {}, [make("i", { class: `series${i + 1}` }), label]));
  return make("ul", { class: "legend" }, items);
}

function makeTop(result) {
  const chosen = new Set(predictedLabels(result));
  const body = make("tbody");
  for (const [label, score] of ranked(result.scores).slice(0, N_TOP)) {
    const meter = make("meter", { min: 0, max: 1, value: score, "aria-label": `score of ${label}` });
    make("tr", { parent: body }, [
      make("th", { text: label, scope: "row" }),
      make("td", { text: score.toFixed(3), class: "number" }),
      make("td", {}, [meter]),
      make("td", { text: chosen.has(label) ? "predicted" : "" }),
    ]);
  }
  return make("table", {}, [make("caption", { text: "Highest scores", class: "faint" }), body]);
}

const drop = byId("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  send([...event.dataTransfer.files]);
});
byId("files").addEventListener("change", (event) => {
  send([...event.target.files]);
  event.target.value = "";
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  loadCard();
});
loadCard();
