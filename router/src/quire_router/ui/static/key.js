// The API key: asked for when the router wants one, kept in this tab's sessionStorage and nowhere else.

import { byId, setText } from "./dom.js";

const NAME = "quire-api-key";
const SENDABLE = /^[\x21-\x7e]+$/; // in a header

export class Key {
  #changed;

  /** `changed` is called when there is another key, or none. */
  constructor(changed) {
    this.#changed = changed;
    byId("key-button").addEventListener("click", () => this.ask(this.value ? "A key is in use." : "No key is in use."));
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const value = byId("key-input").value.trim();
      if (SENDABLE.test(value)) this.#use(value);
      else setText(byId("key-why"), "A key has letters, digits and signs of ASCII, no spaces.");
    });
    byId("key-forget").addEventListener("click", () => this.#use(""));
  }

  get value() {
    return sessionStorage.getItem(NAME) ?? "";
  }

  headers() {
    return this.value ? { authorization: `Bearer ${this.value}` } : {};
  }

  wanted() {
    this.ask(this.value ? "The router does not know this key." : "This router wants an API key.");
  }

  ask(why) {
    setText(byId("key-why"), why);
    const dialog = byId("key-dialog");
    if (dialog.open) return;
    dialog.showModal();
    byId("key-input").focus();
  }

  #use(value) {
    if (value) sessionStorage.setItem(NAME, value);
    else sessionStorage.removeItem(NAME);
    byId("key-input").value = "";
    byId("key-dialog").close();
    this.#changed();
  }
}
