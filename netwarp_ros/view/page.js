// SPDX-License-Identifier: Apache-2.0
// Draws the state of each camera. The keys of a state:
//   name; node (empty: none); level (OK, WARN, ERROR, STALE) and message of its diagnostics;
//   about, values: the values of the node's and of the camera's status on /diagnostics;
//   silence: seconds since the latest mask, null before the first; picture: the newest picture's number, 0: none;
//   frames: for each of the latest frames a list: STAGES, total and age in ms, and 1 if the memory was reset, else 0.
"use strict";

const STAGES = ["wait", "decode", "prepare", "flow", "network", "publish"];
const RESET = STAGES.length + 2;
const SILENT_S = 2; // without a mask until the page says so
const COLUMNS = 120; // frames in a timeline

const cards = new Map();

const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];
const shown = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toString());

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

class Card {
  constructor(name) {
    this.name = name;
    this.root = document.getElementById("camera").content.firstElementChild.cloneNode(true);
    this.find("h2").textContent = name;
    this.image = this.find("img");
    this.image.alt = `overlay of ${name}`;
    this.drawn = 0;
    this.loading = false;
    this.stages = STAGES.map((stage) => {
      const item = element("li");
      const value = element("b");
      item.append(element("i", "", stage), stage, value);
      this.find(".legend").append(item);
      const part = element("span", "", stage);
      this.find(".bar").append(part);
      return { part, value };
    });
    document.getElementById("cameras").append(this.root);
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  show(state) {
    this.root.className = `is-${state.level.toLowerCase()}`;
    this.root.classList.toggle("idle", state.frames.length === 0);
    this.find(".level").textContent = state.level;
    this.find(".message").textContent = state.message;
    this.find(".veil").textContent = this.missing(state);
    this.figures(state.values);
    this.times(state.frames);
    this.counts(state.values);
    const { model, device, precision } = state.about;
    const parts = [state.node, model, device && `${device}, ${precision}`];
    this.find(".about").textContent = parts.filter(Boolean).join(" · ");
    this.fetch(state.picture);
  }

  missing(state) {
    if (!state.node) return "no segment node";
    if (state.silence === null) return "no image yet";
    if (state.silence > SILENT_S) return `no mask for ${Math.round(state.silence)} s`;
    return state.picture ? "" : "no picture yet";
  }

  // Requests one picture at a time, so a slow browser gets fewer pictures, and always the newest.
  async fetch(number) {
    if (!number || number === this.drawn || this.loading) return;
    this.loading = true;
    const image = new Image();
    image.src = `picture?camera=${encodeURIComponent(this.name)}&number=${number}`;
    try {
      await image.decode();
      image.alt = this.image.alt;
      this.image.replaceWith(image);
      this.image = image;
      this.drawn = number;
    } catch {
      // The next state requests it again.
    } finally {
      this.loading = false;
    }
  }

  figures(values) {
    const pair = (what) => {
      const p50 = values[`${what} p50 (ms)`];
      return p50 ? [shown(+p50), `/ ${shown(+values[`${what} p95 (ms)`])} ms`] : ["–", ""];
    };
    const rate = values["rate of masks (Hz)"];
    const lost = +(values.dropped ?? 0) + +(values.missed ?? 0);
    const figures = {
      rate: rate ? [rate, `of ${values["rate of images (Hz)"]}`] : ["–", ""],
      latency: pair("latency"),
      age: pair("age"),
      dropped: values.received ? [lost, `of ${+values.received + +(values.missed ?? 0)}`] : ["–", ""],
    };
    for (const [name, [value, unit]] of Object.entries(figures)) {
      this.find(`[data-figure=${name}]`).replaceChildren(element("b", value), ` ${unit}`);
    }
  }

  times(frames) {
    const medians = STAGES.map((_, stage) => (frames.length ? median(frames.map((frame) => frame[stage])) : 0));
    this.stages.forEach(({ part, value }, stage) => {
      part.style.flexGrow = medians[stage];
      value.textContent = frames.length ? `${shown(medians[stage])} ms` : "–";
    });
    const canvas = this.find("canvas");
    const summary = `stages of the latest ${frames.length} frames`;
    if (canvas.getAttribute("aria-label") !== summary) canvas.setAttribute("aria-label", summary);
    drawTimeline(canvas, frames);
  }

  counts(values) {
    const rows = [["dropped", "missed"], ["resets", ""]].map(([what, other]) => {
      const cell = element("td");
      for (const [key, count] of Object.entries(values)) {
        const reason = key === other ? key : key.startsWith(`${what}: `) ? key.slice(what.length + 2) : "";
        if (reason && +count) cell.append(element("span", `${reason} ${count}`));
      }
      if (!cell.childElementCount) cell.textContent = "none";
      const row = element("tr");
      row.append(element("td", what === "resets" ? "memory resets" : what), cell);
      return row;
    });
    if (values["last error"] && values["last error"] !== "none") {
      const row = element("tr");
      row.append(element("td", "last error"), element("td", values["last error"]));
      rows.push(row);
    }
    this.find(".counts").replaceChildren(...rows);
  }
}

// Draws one column for each frame, newest at the right, with its stages stacked and a mark if the memory was reset.
function drawTimeline(canvas, frames) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const color = (name) => style.getPropertyValue(`--${name}`);
  pen.scale(scale, scale);
  const sums = frames.map((frame) => frame.slice(0, STAGES.length).reduce((sum, ms) => sum + ms, 0));
  const ordered = [...sums].sort((a, b) => a - b);
  const usual = ordered[Math.floor(0.98 * (ordered.length - 1))] || 0; // not the maximum: one slow frame would flatten the rest
  const step = 10 ** Math.floor(Math.log10(Math.max(usual, 1)));
  const top = Math.max(1, Math.ceil((1.1 * usual) / step) * step);
  const [left, bottom, roof] = [50, height - 3, 12];
  const y = (ms) => bottom - ((bottom - roof) * Math.min(ms, top)) / top;
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const ms of [0, top / 2, top]) {
    pen.fillStyle = color("line");
    pen.fillRect(left, y(ms), width - left, 1);
    pen.fillStyle = color("soft");
    pen.fillText(ms ? `${+ms.toFixed(1)} ms` : "0", left - 6, ms ? y(ms) : bottom - 4);
  }
  const column = (width - left) / COLUMNS;
  frames.forEach((frame, index) => {
    const x = width - (frames.length - index) * column;
    let sum = 0;
    STAGES.forEach((stage, number) => {
      pen.fillStyle = color(stage);
      pen.fillRect(x, y(sum + frame[number]), Math.max(1, column - 0.6), y(sum) - y(sum + frame[number]));
      sum += frame[number];
    });
    if (frame[RESET]) {
      pen.fillStyle = color("error");
      pen.fillRect(x, 0, Math.max(2, column - 0.6), 7);
    }
  });
}

function show(states) {
  for (const state of states) {
    if (!cards.has(state.name)) cards.set(state.name, new Card(state.name));
    cards.get(state.name).show(state);
  }
  document.getElementById("empty").hidden = states.length > 0;
  const troubled = states.filter((state) => state.level !== "OK").length;
  const count = `${states.length} camera${states.length === 1 ? "" : "s"}`;
  document.getElementById("summary").textContent = states.length ? `${count}, ${troubled ? `${troubled} not OK` : "all OK"}` : "";
  document.title = troubled ? `(${troubled}) netwarp view` : "netwarp view";
}

function tell(text, live) {
  document.getElementById("link").textContent = text;
  document.getElementById("link").className = live ? "live" : "";
  document.body.classList.toggle("lost", !live);
}

const stream = new EventSource("states");
stream.onmessage = (message) => {
  tell("live", true);
  show(JSON.parse(message.data));
};
stream.onerror = () => tell("connection lost, trying again", false);
