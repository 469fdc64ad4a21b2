// One turn of the conversation on the page. All of it is text, whatever a model writes.

import { byId, element, setText } from "./dom.js";

const NEAR_PX = 40;

export class Turn {
  #node = element("article", { class: "turn" });
  #parts = new Map();

  constructor(role, speaker) {
    this.#node.append(element("h3", {}, speaker));
    this.#node.dataset.role = role;
    following(() => byId("chat-log").append(this.#node));
  }

  /** An answer as far as it has come. */
  show({ reasoning = "", content = "", tools = [] }) {
    following(() => {
      if (reasoning) setText(this.#part("reasoning", makeReasoning).lastElementChild, reasoning);
      if (content) setText(this.#part("content", makeContent), content);
      tools.forEach((call, index) => {
        const [name, text] = this.#part(`tool ${index}`, makeCall).children;
        setText(name, `Calls ${call.name}`);
        setText(text, call.arguments);
      });
    });
  }

  /** `failure` says why it is not complete, or is null. */
  end(failure) {
    if (failure === null) return;
    const node = element("p", { class: failure === "stopped" ? "hint" : "failure" }, failure);
    following(() => this.#node.append(node));
  }

  #part(name, make) {
    if (!this.#parts.has(name)) {
      this.#parts.set(name, make());
      this.#node.append(this.#parts.get(name));
    }
    return this.#parts.get(name);
  }
}

const makeContent = () => element("div", { class: "text" });
const makeCall = () => element("div", { class: "call" }, element("h4"), element("pre"));

function makeReasoning() {
  const details = element("details", { class: "reasoning" }, element("summary", {}, "Reasoning"), element("div", { class: "text" }));
  details.open = true;
  return details;
}

/** Keeps the end in view while `change` makes the conversation longer, unless one has scrolled away from it to read. */
function following(change) {
  const log = byId("chat-log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}
