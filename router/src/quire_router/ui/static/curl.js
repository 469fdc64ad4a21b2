// The request of the chat as a line for a shell. A key is never in it: the shell puts it in from its environment.

/** In single quotes nothing has a meaning to a shell, but the single quote itself. */
export function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

export function curlLine(url, body, { withKey }) {
  const parts = [`curl -N ${quoted(url)}`, `-H 'content-type: application/json'`];
  if (withKey) parts.push('-H "authorization: Bearer $QUIRE_API_KEY"');
  parts.push(`-d ${quoted(JSON.stringify(body))}`);
  return parts.join(" \\\n  ");
}
