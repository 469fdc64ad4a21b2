// The chat: reads the form, streams an answer into the conversation, stops it. The conversation is in the page alone.

import { curlLine } from "./curl.js";
import { byId, element, keyed, setText } from "./dom.js";
import { duration, plural, rate } from "./format.js";
import { Answer, eventsOf } from "./sse.js";
import { Turn } from "./turn.js";

const ENDPOINT = new URL("../v1/chat/completions", location.href).href;

export class Chat {
  #key;
  #messages = []; // of the conversation so far, as the API has them
  #stopping = null; // aborts the answer under way

  constructor(key) {
    this.#key = key;
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("chat-form").addEventListener("input", () => this.#showCurl());
    byId("chat-prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("chat-form").requestSubmit();
    });
    byId("chat").addEventListener("keydown", (event) => event.key === "Escape" && this.#stopping?.abort());
    byId("chat-stop").addEventListener("click", () => this.#stopping?.abort());
    byId("chat-new").addEventListener("click", () => this.#clear());
    byId("curl-copy").addEventListener("click", copyCurl);
    this.#showCurl();
  }

  showModels(models) {
    const chosen = byId("chat-model").value;
    const make = (model) => element("option", { value: model.name }, model.name);
    keyed(byId("chat-model"), models, (model) => model.name, make, () => {});
    if (byId("chat-model").value !== chosen) this.#showCurl();
  }

  keyChanged() {
    this.#showCurl();
  }

  #showCurl() {
    const line = curlLine(ENDPOINT, this.#request(), { withKey: this.#key.value !== "" });
    setText(byId("curl-line"), line);
    setText(byId("curl-copied"), "");
  }

  /** What would be sent now. */
  #request() {
    const request = { model: byId("chat-model").value, messages: [], stream: true, stream_options: { include_usage: true } };
    const { value: temperature } = byId("chat-temperature");
    const { value: maxTokens } = byId("chat-max-tokens");
    const { value: system } = byId("chat-system");
    if (temperature !== "") request.temperature = Number(temperature);
    if (maxTokens !== "") request.max_tokens = Number(maxTokens);
    if (system.trim() !== "") request.messages.push({ role: "system", content: system });
    request.messages.push(...this.#messages, { role: "user", content: byId("chat-prompt").value });
    return request;
  }

  async #send() {
    if (this.#stopping) return;
    const request = this.#request();
    const prompt = request.messages.at(-1);
    this.#stopping = new AbortController();
    this.#busy(true);
    const messages = this.#messages; // a new chat begins another list
    new Turn("user", "You").show({ content: prompt.content });
    const turn = new Turn("assistant", request.model);
    byId("chat-prompt").value = "";
    const answer = new Answer();
    const failure = await this.#stream(request, answer, turn);
    turn.end(failure);
    if (answer.content) messages.push(prompt, { role: "assistant", content: answer.content });
    else if (byId("chat-prompt").value === "") byId("chat-prompt").value = prompt.content; // to be tried again
    this.#stopping = null;
    this.#busy(false);
    this.#showCurl();
  }

  /** Into `answer`; why it is not complete, or null. */
  async #stream(request, answer, turn) {
    const began = performance.now();
    let first = null;
    const headers = { "content-type": "application/json", ...this.#key.headers() };
    try {
      const { signal } = this.#stopping;
      const response = await fetch(ENDPOINT, { method: "POST", headers, body: JSON.stringify(request), signal });
      if (!response.ok) return await this.#refusal(response);
      for await (const data of eventsOf(response.body)) {
        if (data === "[DONE]") break;
        const chunk = JSON.parse(data);
        if (chunk.error) return chunk.error.message ?? "the answer broke off";
        answer.add(chunk);
        if (answer.content || answer.reasoning || answer.tools.length > 0) first ??= performance.now();
        turn.show(answer);
      }
      setText(byId("chat-status"), summaryOf(answer, began, first));
      return answer.finish === null ? "the answer broke off" : null;
    } catch (error) {
      if (error.name === "AbortError") return "stopped";
      return error instanceof SyntaxError ? "the answer is not JSON" : "connection lost";
    }
  }

  async #refusal(response) {
    if (response.status === 401) this.#key.wanted();
    const body = await response.json().catch(() => ({}));
    const later = response.headers.get("retry-after");
    const message = body.error?.message ?? `the router answers ${response.status}`;
    return later ? `${message} (again in ${later} s)` : message;
  }

  #busy(busy) {
    byId("chat-send").disabled = busy;
    byId("chat-stop").disabled = !busy;
    byId("chat-log").setAttribute("aria-busy", String(busy)); // read aloud when it is whole, not word by word
    if (busy) setText(byId("chat-status"), "Answering…");
    else if (byId("chat-status").textContent === "Answering…") setText(byId("chat-status"), "");
  }

  #clear() {
    this.#stopping?.abort();
    this.#messages = [];
    byId("chat-log").replaceChildren();
    setText(byId("chat-status"), "");
    this.#showCurl();
    byId("chat-prompt").focus();
  }
}

function summaryOf(answer, began, first) {
  const tokens = answer.usage?.completion_tokens ?? null;
  if (first === null || tokens === null) return "Done.";
  const seconds = (performance.now() - first) / 1000;
  const speed = tokens > 1 && seconds > 0 ? `, then ${rate((tokens - 1) / seconds)} a second` : "";
  return `Done: ${plural(tokens, "token")}, the first after ${duration((first - began) / 1000)}${speed}.`;
}

async function copyCurl() {
  const line = byId("curl-line");
  try {
    await navigator.clipboard.writeText(line.textContent);
    setText(byId("curl-copied"), "Copied.");
  } catch {
    getSelection().selectAllChildren(line); // over plain HTTP browsers keep pages off the clipboard
    setText(byId("curl-copied"), "Marked: copy it with Ctrl+C.");
  }
}
