// Asking the server. Every address is relative to where the application is mounted.

/** The application's root: this file is in its console/. */
export const ROOT = new URL("../", import.meta.url);

const PATIENCE_MS = 4000;

/** The server could not be asked, or what it said was no answer; the message says which. */
export class NoAnswer extends Error {}

/** The JSON at `path`. Throws NoAnswer. */
export async function getJson(path, headers = {}) {
  const response = await get(path, headers);
  try {
    return await response.json();
  } catch {
    throw new NoAnswer(`${path} is not JSON`);
  }
}

/** The text at `path`. Throws NoAnswer. */
export async function getText(path) {
  try {
    return await (await get(path)).text();
  } catch (error) {
    throw error instanceof NoAnswer ? error : new NoAnswer("the connection broke");
  }
}

async function get(path, headers = {}) {
  let response;
  try {
    const signal = AbortSignal.timeout(PATIENCE_MS);
    response = await fetch(new URL(path, ROOT), { headers, cache: "no-store", signal });
  } catch (error) {
    throw new NoAnswer(error.name === "TimeoutError" ? `no answer for ${PATIENCE_MS / 1000} s` : "no connection");
  }
  if (!response.ok) throw new NoAnswer(`it answers with status ${response.status}`);
  return response;
}

/** Where a program is described (GET) and called (POST). */
export function programPath(name) {
  return `v1/programs/${encodeURIComponent(name)}`;
}

/**
 * Call a program: what `sendJson` returns.
 */
export async function callProgram(name, body, { skipCache, signal }) {
  return sendJson("POST", programPath(name), body, skipCache ? { "cache-control": "no-cache" } : {}, signal);
}

/**
 * Send a body as JSON (none when undefined): `{status, body, text}`, whatever the status; `body` is null when the answer
 * is not JSON. Throws what `fetch` throws; without a signal it waits as long as for a figure.
 */
export async function sendJson(method, path, body, headers, signal = AbortSignal.timeout(PATIENCE_MS)) {
  const type = body === undefined ? {} : { "content-type": "application/json" };
  const request = { method, headers: { ...type, ...headers }, body: JSON.stringify(body), signal };
  const response = await fetch(new URL(path, ROOT), request);
  const text = await response.text();
  return { status: response.status, body: parsed(text), text };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
