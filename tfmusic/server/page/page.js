"use strict";
// Text of files, labels and cards is set as textContent alone: it is untrusted.

const byId = (id) => document.getElementById(id);
const N_LINES = 5;
const N_TOP = 8;
let token = "";

function make(tag, { text, parent, ...attributes } = {}, children = []) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  if (parent) parent.append(made);
  return made;
}

const clock = (seconds) => {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
};
const list = (answer) => (Array.isArray(answer) ? answer : [answer]);

function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers });
}

async function loadCard() {
  const response = await ask("v1/card");
  byId("token-form").hidden = response.status !== 401;
  if (!response.ok) {
    byId("about").textContent = response.status === 401 ? "This server asks for a token." : "The model card is missing.";
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
  const found = card.evaluation;
  for (const [name, [value, low, high]] of Object.entries(found?.metrics ?? {})) {
    rows.push([name, `${value.toFixed(3)} (95 % ${low.toFixed(3)} to ${high.toFixed(3)})`]);
  }
  if (found) rows.push(["Scored on", `${found.tracks} tracks. ${found.note}`]);
  else rows.push(["Evaluation", "none is known"]);
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
  status.textContent = files.length === 1 ? `Listening to ${files[0].name} …` : `Listening to ${files.length} tracks …`;
  for (const file of files) {
    const form = new FormData();
    form.append("files", file);
    try {
      const response = await ask("v1/predict", { method: "POST", body: form });
      const told = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
      const one = told.tracks ? told.tracks[0] : { file: file.name, error: told.error };
      byId("results").prepend(showTrack(one, file));
    } catch {
      byId("results").prepend(showTrack({ file: file.name, error: "the server cannot be reached" }, file));
    }
  }
  status.textContent = files.length === 1 ? "Done." : `Done: ${files.length} tracks.`;
}

// Strongest first: the order of an object's keys is not that of the answer where labels look like numbers.
const ranked = (scores) => Object.entries(scores).sort((a, b) => b[1] - a[1]);

function showTrack(told, file) {
  const track = make("article", { class: "track" });
  make("h2", { text: told.file, parent: track });
  if (told.error) {
    make("p", { text: told.error, class: "answer failed", parent: track });
    return track;
  }
  make("p", { text: list(told.answer).join(", ") || "none of its tags", class: "answer", parent: track });
  const player = makePlayer(track, file);
  const labels = ranked(told.scores).map(([label]) => label).filter((label) => label in told.timeline.scores).slice(0, N_LINES);
  const lines = makeLines(told, labels, player);
  const parts = makeParts(told, player);
  track.append(lines.element, makeLegend(labels), parts.element, makeTop(told));
  player.onTime((seconds) => {
    lines.moveTo(seconds);
    parts.moveTo(seconds);
  });
  make("p", {
    text: `${clock(told.duration_s)} of music, ${told.aggregator.replaceAll("_", " ")} over ${told.windows} windows.`,
    class: "faint", parent: track,
  });
  return track;
}

// Plays what a browser can play; of a spectrogram only the place in it is kept.
function makePlayer(track, file) {
  const listeners = [];
  const tell = (seconds) => listeners.forEach((listener) => listener(seconds));
  const player = { onTime: (listener) => listeners.push(listener), seek: tell };
  if (file.name.toLowerCase().endsWith(".npy")) return player;
  const audio = make("audio", { controls: "", preload: "metadata", "aria-label": `Play ${file.name}`, parent: track });
  audio.src = URL.createObjectURL(file);
  audio.addEventListener("timeupdate", () => tell(audio.currentTime));
  player.seek = (seconds) => {
    audio.currentTime = seconds;
    tell(seconds);
    audio.play().catch(() => {});
  };
  return player;
}

function makeLines(told, labels, player) {
  const svgTag = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const edges = told.timeline.edges_s;
  const svg = svgTag("svg", { viewBox: `0 0 ${told.duration_s} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  labels.forEach((label, i) => {
    const points = told.timeline.scores[label].map((score, k) => {
      const y = (0.97 - 0.94 * score).toFixed(4);
      return `${k ? "L" : "M"}${edges[k]} ${y}L${edges[k + 1]} ${y}`;
    });
    svg.append(svgTag("path", { d: points.join(""), class: `series${i + 1}` }));
  });
  const cursor = make("div", { class: "cursor" });
  const element = make("div", { class: "lines" }, [svg, cursor]);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    player.seek(((event.clientX - box.left) / box.width) * told.duration_s);
  });
  const moveTo = (seconds) => {
    cursor.style.left = `${Math.min(100 * seconds / told.duration_s, 100)}%`;
  };
  return { element, moveTo };
}

function makeParts(told, player) {
  const element = make("div", { class: "parts", role: "group", "aria-label": "Parts of the track" });
  const buttons = told.parts.map((part) => {
    const [label, score] = ranked(part.labels)[0];
    const name = `${clock(part.begin_s)}-${clock(part.end_s)} ${label} ${score.toFixed(2)}`;
    const all = ranked(part.labels).map(([one, value]) => `${one} ${value.toFixed(2)}`).join(", ");
    const button = make("button", { text: name, type: "button", title: all, parent: element });
    button.style.flexGrow = part.end_s - part.begin_s;
    button.addEventListener("click", () => player.seek(part.begin_s));
    return button;
  });
  const moveTo = (seconds) => told.parts.forEach((part, i) => {
    buttons[i].setAttribute("aria-current", String(part.begin_s <= seconds && seconds < part.end_s));
  });
  return { element, moveTo };
}

function makeLegend(labels) {
  const items = labels.map((label, i) => make("li", {}, [make("i", { class: `series${i + 1}` }), label]));
  return make("ul", { class: "legend" }, items);
}

function makeTop(told) {
  const chosen = new Set(list(told.answer));
  const body = make("tbody");
  const ordered = ranked(told.scores).slice(0, N_TOP);
  for (const [label, score] of ordered) {
    const meter = make("meter", { min: 0, max: 1, value: score, "aria-label": `score of ${label}` });
    make("tr", { parent: body }, [
      make("th", { text: label, scope: "row" }),
      make("td", { text: score.toFixed(3), class: "number" }),
      make("td", {}, [meter]),
      make("td", { text: chosen.has(label) ? "answer" : "" }),
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
