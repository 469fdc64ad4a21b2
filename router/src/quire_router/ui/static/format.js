// Numbers and times as people read them. Pure; null is an em dash: nobody has said.

export const NOTHING = "—";

export function count(value) {
  return value === null || value === undefined ? NOTHING : value.toLocaleString("en");
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return NOTHING;
  return perSecond >= 100 ? count(Math.round(perSecond)) : perSecond.toFixed(1);
}

export function percent(share) {
  if (share === null || share === undefined) return NOTHING;
  return share > 0 && share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 0.01) return `${(1000 * seconds).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  return seconds < 10 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}

/** How long ago, from the router's clock to the router's clock. */
export function ago(at, now) {
  const seconds = Math.max(0, Math.round(now - at));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} d ago`;
}

export function clock(at) {
  return new Date(1000 * at).toLocaleString();
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
