// A stream of server-sent events, and what the deltas of a chat add up to. No page in here.

/** The data of each event; comments and other fields are left out. */
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split(/\r?\n\r?\n/);
      text = blocks.pop();
      for (const block of blocks) {
        const data = dataOf(block);
        if (data !== "") yield data;
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // whoever stops reading wants no more of it
  }
}

function dataOf(block) {
  const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

/** The answer so far. */
export class Answer {
  reasoning = "";
  content = "";
  tools = []; // {name, arguments}
  finish = null;
  usage = null;

  /** One chunk of `chat.completion.chunk`; whatever is not there is left as it is. */
  add(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const delta = choice.delta ?? {};
    this.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
    this.content += delta.content ?? "";
    for (const call of delta.tool_calls ?? []) this.#addCall(call);
    this.finish = choice.finish_reason ?? this.finish;
  }

  #addCall({ index = 0, function: part = {} }) {
    const call = (this.tools[index] ??= { name: "", arguments: "" });
    call.name += part.name ?? "";
    call.arguments += part.arguments ?? "";
  }
}
