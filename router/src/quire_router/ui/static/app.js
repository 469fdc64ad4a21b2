// Puts the page together: the poll, the key, the views. Says what has changed to those who do not see it.

import { Chat } from "./chat.js";
import { byId, setAttribute, setText } from "./dom.js";
import { showErrors } from "./errors.js";
import { Key } from "./key.js";
import { showModels } from "./models.js";
import { Poll } from "./poll.js";
import { news, summary } from "./standing.js";

let last = null; // the state that is shown

const key = new Key(() => {
  last = null;
  chat.keyChanged();
  poll.now();
});
const chat = new Chat(key);
const poll = new Poll(() => key.headers(), {
  state(state) {
    connection("live", "live");
    const said = news(last, state);
    if (said.length > 0) setText(byId("said"), said.join(". "));
    last = state;
    setText(byId("summary"), summary(state.models));
    showModels(state);
    showErrors(state);
    chat.showModels(state.models);
  },
  refused() {
    connection("refused", "no key");
    key.wanted();
  },
  lost(reason, retryS) {
    connection("lost", "connection lost", `Connection lost: ${reason}. What is shown is old; the next try is in ${Math.round(retryS)} s.`);
  },
});

function connection(state, word, notice = "") {
  setAttribute(document.body, "data-connection", state);
  setAttribute(byId("connection"), "data-state", state);
  setText(byId("connection"), word);
  byId("lost").hidden = notice === "";
  setText(byId("lost"), notice);
}

poll.now();
