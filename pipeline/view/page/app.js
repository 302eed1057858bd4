// The page: which cameras are shown and how, and everything one can press.

import { Connection } from "./connection.js";
import { colourTable } from "./labels.js";
import { Legend, showFacts, showHistory } from "./panel.js";
import { Transport } from "./playback.js";
import { MODES, change, onChange, settings } from "./settings.js";
import { Tile } from "./tile.js";

const UNWATCH_HIDDEN_MS = 3000;
const element = (id) => document.getElementById(id);
const tiles = new Map();
const shared = { classes: [], table: new Uint32Array(256), clock: () => connection.clock, replay: false };
const visible = new Set();
let statuses = [];
let open = false;
let hidden = document.hidden;

const legend = new Legend(toggleClass, onlyClass);
const transport = new Transport({ ask: answer, say });
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    visible[isIntersecting ? "add" : "delete"](target.dataset.name);
  }
  watch();
}, { rootMargin: "200px" });

const connection = new Connection({
  onState: showLink,
  onHello: ({ classes, login, replay }) => {
    shared.classes = classes;
    shared.replay = replay;
    if (replay) transport.start();
    legend.show(classes, settings.off);
    element("logout").hidden = !login;
    recolour();
  },
  onStatus: ({ cameras, playback }) => {
    if (playback) transport.update(playback, shownNames(cameras));
    showStatus(cameras);
  },
  onFrame: (frame) => tiles.get(frame.camera)?.receive(frame),
});

function showLink(state) {
  open = state === "open";
  const text = { connecting: "Connecting", open: "Connected", lost: "Connection lost, trying again" }[state];
  element("link").dataset.state = state;
  const label = element("link").querySelector(".text");
  // Attempts follow each other; only what changes for the person is told.
  if (!(state === "connecting" && statuses.length)) label.textContent = text;
  if (state === "lost") {
    for (const tile of tiles.values()) tile.lost();
  }
  watch();
}

function showStatus(cameras) {
  statuses = cameras;
  const names = new Set(cameras.map(({ name }) => name));
  for (const [name, tile] of tiles) {
    if (names.has(name)) continue;
    observer.unobserve(tile.element);
    visible.delete(name);
    tile.dispose();
    tiles.delete(name);
  }
  for (const { name } of cameras) {
    if (tiles.has(name)) continue;
    const tile = new Tile(name, shared, { onOpen: openTile, onPoint: pointed, onKind: watch });
    tiles.set(name, tile);
    element("grid").append(tile.element);
    observer.observe(tile.element);
  }
  element("empty").hidden = cameras.length > 0;
  for (const status of cameras) tiles.get(status.name).update(status);
  arrange();
  showPanel();
}

function selected() {
  return tiles.get(settings.camera);
}

function shownNames(cameras) {
  const one = cameras.find(({ name }) => name === settings.camera);
  return (one ? [one] : cameras).map(({ name }) => name);
}

function shownStatuses() {
  const one = selected();
  return one ? [one.status] : statuses;
}

function showPanel() {
  const one = selected();
  const shown = shownStatuses();
  legend.shares(shown, one ? `Share of ${one.name}’s picture` : "Share of all pictures");
  element("details").hidden = !one;
  if (one) showFacts(one, shared.replay);
  const nowS = shared.replay ? transport.recordedS() : (connection.clock.serverMs() ?? Date.now()) / 1000;
  showHistory(shown, nowS);
}

function arrange() {
  const one = selected();
  document.body.classList.toggle("single", Boolean(one));
  for (const tile of tiles.values()) tile.element.hidden = Boolean(one) && tile !== one;
  document.title = one ? `${one.name} – Roadmask` : "Roadmask";
  const wanted = ["", ...tiles.keys()];
  const tabs = element("tabs");
  tabs.hidden = tiles.size < 2 && !one;
  if (JSON.stringify(wanted) !== tabs.dataset.names) {
    tabs.dataset.names = JSON.stringify(wanted);
    tabs.replaceChildren(...wanted.map((name) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: name || "All" });
      button.dataset.camera = name;
      button.addEventListener("click", () => change({ camera: name || null }));
      return button;
    }));
  }
  for (const button of tabs.children) {
    const current = button.dataset.camera === (one ? one.name : "");
    button.toggleAttribute("aria-current", current);
    if (current) button.setAttribute("aria-current", "true");
    const state = tiles.get(button.dataset.camera)?.element.dataset.state;
    if (state) button.dataset.state = state;
  }
  watch();
}

// Asks the server for what can be seen, and for nothing else.
function watch() {
  const wanted = {};
  for (const tile of tiles.values()) {
    const active = open && !hidden && visible.has(tile.name) && !tile.element.hidden;
    tile.setActive(active);
    if (active) wanted[tile.name] = tile.kind;
  }
  if (open) connection.watch(wanted);
}

function recolour() {
  shared.table = colourTable(shared.classes, settings.off);
  for (const tile of tiles.values()) tile.redraw();
}

function openTile(tile) {
  change({ camera: settings.camera === tile.name ? null : tile.name });
}

function pointed(tile, id, said) {
  legend.point(id);
  if (said) say(said);
}

function say(text) {
  if (element("said").textContent !== text) element("said").textContent = text;
}

function toggleClass(name) {
  const off = new Set(settings.off);
  if (!off.delete(name)) off.add(name);
  change({ off });
}

function onlyClass(name) {
  change({ off: new Set(shared.classes.map((one) => one.name).filter((one) => one !== name)) });
}

function allClasses(on) {
  change({ off: new Set(on ? [] : shared.classes.map(({ name }) => name)) });
}

function step(by) {
  const names = [...tiles.keys()];
  if (!names.length) return;
  const at = names.indexOf(settings.camera);
  const next = at < 0 ? (by > 0 ? 0 : names.length - 1) : (at + by + names.length) % names.length;
  change({ camera: names[next] });
  say(`Camera ${names[next]}`);
}

function nextMode() {
  const mode = MODES[(MODES.indexOf(settings.mode) + 1) % MODES.length];
  change({ mode });
  say({ overlay: "Overlay", side: "Side by side", mask: "Mask", video: "Video" }[mode]);
}

function setOpacity(opacity) {
  change({ opacity: Math.min(1, Math.max(0, Math.round(opacity * 20) / 20)) });
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else (selected()?.stageElement ?? document.documentElement).requestFullscreen?.().catch(() => {});
}

function isDark() {
  return settings.theme ? settings.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function show() {
  const { mode, opacity, theme, keys, frozen, off } = settings;
  if (theme) document.documentElement.dataset.theme = theme;
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
  document.body.dataset.mode = mode;
  const percent = Math.round(100 * opacity);
  element("opacity").value = percent;
  element("opacity-value").textContent = `${percent} %`;
  element("opacity").disabled = mode !== "overlay";
  element("freeze").setAttribute("aria-pressed", String(frozen));
  element("keys-on").checked = keys;
  legend.mark(off);
  recolour();
  arrange();
  showPanel();
}

function freezeOrPause() {
  if (shared.replay) transport.toggle();
  else change({ frozen: !settings.frozen });
}

const REPLAY_KEYS = {
  ",": () => transport.step(-1),
  ".": () => transport.step(1),
  "<": () => transport.faster(-1),
  ">": () => transport.faster(1),
  ArrowLeft: () => transport.skip(-1),
  ArrowRight: () => transport.skip(1),
  Home: () => transport.seek(0),
  End: () => transport.seek(Infinity),
};

const KEYS = {
  a: () => allClasses(settings.off.size > 0),
  "[": () => setOpacity(settings.opacity - 0.05),
  "]": () => setOpacity(settings.opacity + 0.05),
  m: nextMode,
  n: () => step(1),
  p: () => step(-1),
  g: () => change({ camera: null }),
  Escape: () => change({ camera: null }),
  " ": freezeOrPause,
  f: fullScreen,
  t: () => change({ theme: isDark() ? "light" : "dark" }),
  "?": () => element("help-dialog").showModal(),
};

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=range], [type=radio], [type=checkbox]), dialog");
  if (!settings.keys || typing || event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (pressed === " " && event.target.closest?.("button, input:not(#seek), select")) return; // it presses those
  const moves = pressed.length > 1 && event.target.closest?.("input:not(#seek), select"); // arrows move in those
  const digit = /^[0-9]$/.test(pressed) ? shared.classes[(Number(pressed) + 9) % 10] : null;
  if (digit) toggleClass(digit.name);
  else if (shared.replay && !moves && Object.hasOwn(REPLAY_KEYS, pressed)) REPLAY_KEYS[pressed]();
  else if (Object.hasOwn(KEYS, pressed)) KEYS[pressed]();
  else return;
  event.preventDefault();
});

async function ask(path, options) {
  try {
    const response = await fetch(path, options);
    if (response.ok) return null;
    return (await response.json()).error;
  } catch {
    return "The server did not answer.";
  }
}

// What the server answers, or null after its error has been shown.
async function answer(path, options) {
  let error = "The server did not answer.";
  try {
    const response = await fetch(path, options);
    const found = await response.json();
    if (response.ok) return found;
    error = found.error;
  } catch {
    // Then that is the error.
  }
  element("notice").hidden = false;
  element("notice").textContent = error;
  setTimeout(() => (element("notice").hidden = true), 5000);
  return null;
}

element("add-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(event.target);
  const body = { url: given.get("url").trim() };
  if (given.get("name")) body.name = given.get("name");
  const headers = { "Content-Type": "application/json" };
  const error = await ask("/api/streams", { method: "POST", headers, body: JSON.stringify(body) });
  element("add-error").textContent = error ?? "";
  if (error) return;
  event.target.reset();
  element("add-dialog").close();
});

element("remove").addEventListener("click", () => {
  element("remove-text").textContent = `${settings.camera} is no longer read or labelled.`;
  element("remove-dialog").returnValue = "";
  element("remove-dialog").showModal();
});

element("remove-dialog").addEventListener("close", async () => {
  if (element("remove-dialog").returnValue !== "yes" || !settings.camera) return;
  const error = await ask(`/api/streams/${encodeURIComponent(settings.camera)}`, { method: "DELETE" });
  element("notice").hidden = !error;
  element("notice").textContent = error ?? "";
  if (!error) change({ camera: null });
});

function openAdd() {
  element("add-error").textContent = "";
  element("add-dialog").showModal();
}

element("add").addEventListener("click", openAdd);
element("add-first").addEventListener("click", openAdd);
element("add-cancel").addEventListener("click", () => element("add-dialog").close());
element("help").addEventListener("click", () => element("help-dialog").showModal());
element("theme").addEventListener("click", KEYS.t);
element("freeze").addEventListener("click", KEYS[" "]);
element("all-on").addEventListener("click", () => allClasses(true));
element("all-off").addEventListener("click", () => allClasses(false));
element("modes").addEventListener("change", ({ target }) => change({ mode: target.value }));
element("opacity").addEventListener("input", ({ target }) => change({ opacity: target.value / 100 }));
element("keys-on").addEventListener("change", ({ target }) => change({ keys: target.checked }));
addEventListener("hashchange", () => {
  const link = new URLSearchParams(location.hash.slice(1));
  const mode = MODES.includes(link.get("mode")) ? link.get("mode") : "overlay";
  change({ camera: link.get("camera"), mode });
});
addEventListener("resize", () => {
  for (const tile of tiles.values()) tile.redraw();
});

let hiding;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  const take = () => {
    hidden = document.hidden;
    watch();
  };
  if (document.hidden) hiding = setTimeout(take, UNWATCH_HIDDEN_MS);
  else take();
});

onChange(show);
show();
if (typeof DecompressionStream === "undefined") {
  element("notice").hidden = false;
  element("notice").textContent = "This browser is too old for the view: it cannot unpack the masks.";
} else {
  connection.open();
}
