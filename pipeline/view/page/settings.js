// What the viewer has chosen: kept in this browser, and in the address what belongs to a link.

const KEY = "roadmask";
export const MODES = ["overlay", "side", "mask", "video"];

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return kept && typeof kept === "object" ? kept : {};
  } catch {
    return {}; // private windows and broken values
  }
}

const kept = load();
const link = new URLSearchParams(location.hash.slice(1));

export const settings = {
  mode: [link.get("mode"), kept.mode].find((mode) => MODES.includes(mode)) ?? "overlay",
  opacity: Number.isFinite(kept.opacity) ? Math.min(1, Math.max(0, kept.opacity)) : 0.55,
  off: new Set(Array.isArray(kept.off) ? kept.off : []),
  theme: ["dark", "light"].includes(kept.theme) ? kept.theme : null,
  keys: kept.keys !== false,
  camera: link.get("camera"),
  frozen: false,
};

const listeners = new Set();

export function onChange(listener) {
  listeners.add(listener);
}

export function change(values) {
  Object.assign(settings, values);
  const { mode, opacity, theme, keys, camera } = settings;
  try {
    localStorage.setItem(KEY, JSON.stringify({ mode, opacity, theme, keys, off: [...settings.off] }));
  } catch {
    // Nothing is kept then; everything works all the same.
  }
  const hash = new URLSearchParams();
  if (camera) hash.set("camera", camera);
  if (mode !== "overlay") hash.set("mode", mode);
  history.replaceState(null, "", hash.size === 0 ? location.pathname + location.search : `#${hash}`);
  for (const listener of listeners) listener();
}

// H.264 by Media Source Extensions where the browser has them and tells which frame is on the screen; else, or
// asked for by `?video=jpeg`, a JPEG a frame.
export function usualVideo() {
  const source = window.ManagedMediaSource ?? window.MediaSource;
  const asked = new URLSearchParams(location.search).get("video");
  const can = source?.isTypeSupported('video/mp4; codecs="avc1.42c01f"');
  const tells = "requestVideoFrameCallback" in HTMLVideoElement.prototype;
  return asked !== "jpeg" && can && tells ? "h264" : "jpeg";
}
