// What went wrong lately: requests that failed, and files that cannot be used.

import { byId, element, keyed, setAttribute, setText } from "./dom.js";
import { NOTHING, ago, clock } from "./format.js";

const SHOWN = 20;

export function showErrors(state) {
  byId("errors").hidden = state.errors.length === 0;
  keyed(byId("error-rows"), state.errors.slice(0, SHOWN), (error) => `${error.request_id} ${error.at}`, makeRow, (row, error) => {
    const cells = [ago(error.at, state.now), error.model, String(error.status), error.message, error.backend ?? NOTHING, error.request_id];
    cells.forEach((text, index) => setText(row.children[index], text));
    setAttribute(row.firstElementChild, "title", clock(error.at));
  });
  const bad = state.files.filter((file) => file.error);
  byId("files").hidden = bad.length === 0;
  keyed(byId("file-rows"), bad, (file) => file.path, () => element("li"), (item, file) => setText(item, file.error));
}

const makeRow = () => element("tr", {}, ...Array.from({ length: 6 }, () => element("td")));
