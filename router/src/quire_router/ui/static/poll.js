// Asks /state again and again: each second while the page is seen and answers come, more seldom otherwise.
// Knows nothing of what the state says. `on` is told of each outcome: state, refused (a key is wanted), lost.

const EVERY_MS = 1000;
const HIDDEN_MS = 30_000;
const MOST_MS = 15_000; // between two tries while nothing answers
const TIMEOUT_MS = 5000;

export class Poll {
  #on;
  #headers;
  #timer = 0;
  #failures = 0;
  #asking = null; // what aborts the question under way

  constructor(headers, on) {
    this.#headers = headers;
    this.#on = on;
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
    window.addEventListener("online", () => this.now());
  }

  /** Ask at once; an answer that is still on its way is of no interest any more. */
  async now() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    const asking = (this.#asking = new AbortController());
    const timeout = setTimeout(() => asking.abort(), TIMEOUT_MS);
    const outcome = await this.#ask(asking.signal);
    clearTimeout(timeout);
    if (this.#asking !== asking) return;
    if (outcome.refused) {
      this.#on.refused();
      return; // until there is another key
    }
    this.#failures = outcome.lost ? this.#failures + 1 : 0;
    const wait = Math.max(Math.min(EVERY_MS * 2 ** this.#failures, MOST_MS), document.hidden ? HIDDEN_MS : EVERY_MS);
    this.#timer = setTimeout(() => this.now(), wait);
    if (outcome.lost) this.#on.lost(outcome.lost, wait / 1000);
    else this.#on.state(outcome.state);
  }

  async #ask(signal) {
    try {
      const answer = await fetch("../state", { headers: this.#headers(), cache: "no-store", signal });
      if (answer.status === 401) return { refused: true };
      if (!answer.ok) return { lost: `the router answers ${answer.status}` };
      return { state: await answer.json() };
    } catch {
      return { lost: "the router does not answer" };
    }
  }
}
