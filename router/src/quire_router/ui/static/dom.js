// Makes and updates elements. The one rule: what comes from the router or a model becomes text, never markup.
// Nothing here replaces an element that is still meant: focus, selection and screen readers stay where they are.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children; strings among these become text. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svgElement(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Touches the page only when there is something new to say. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Makes the children of `parent` one for each item, in their order: those with the same key are kept and updated. */
export function keyed(parent, items, keyOf, make, update) {
  const kept = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let after = null;
  for (const item of items) {
    const key = String(keyOf(item));
    const child = kept.get(key) ?? make(item);
    kept.delete(key);
    child.dataset.key = key;
    const place = after === null ? parent.firstElementChild : after.nextElementSibling;
    if (place !== child) parent.insertBefore(child, place);
    update(child, item);
    after = child;
  }
  for (const gone of kept.values()) gone.remove();
}
