// Giving an order, and what became of it in plain words.

import { credentials, forgetOperatorKey, operatorKey } from "./operator_key.js";
import { sendJson } from "./server.js";

const NOTHING_CHANGED = "Nothing was changed.";

/** What an operator can order: `{method, path, body, done}`; `done` is what to say when it was carried out. */
export const ORDERS = {
  isolate: (model, reason) => ({
    method: "POST",
    path: `v1/models/${encodeURIComponent(model)}/isolate`,
    body: { reason },
    done: `${model} is isolated: no call goes to it until it is reset.`,
  }),
  reset: (model) => ({
    method: "POST",
    path: `v1/models/${encodeURIComponent(model)}/reset`,
    body: {},
    done: `${model} was reset: calls go to it, and its failures are forgotten.`,
  }),
  pin: (level) => ({
    method: "PUT",
    path: "v1/level",
    body: { pin: level },
    done: level === null ? "The level follows the policy and the readings again." : `Level ${level} is held until it is let go.`,
  }),
  clear: (program) => ({
    method: "DELETE",
    path: program === null ? "v1/cache" : `v1/cache/${encodeURIComponent(program)}`,
    done: `The stored answers of ${program ?? "every program"} are forgotten.`,
  }),
};

/** Give an order: `{kind, text, wantsKey}`; `kind` is good or bad, `wantsKey` says that a key would help. */
export async function giveOrder({ method, path, body, done }) {
  const hadKey = operatorKey() !== null;
  let reply;
  try {
    reply = await sendJson(method, path, body, credentials());
  } catch {
    return bad("The server did not answer. Whether the order arrived is not known; giving it again does no harm.");
  }
  if (reply.status === 200) return { kind: "good", text: done, wantsKey: false };
  if (reply.status === 401) return bad(`Refused: this needs the operator key. ${NOTHING_CHANGED}`, true);
  if (reply.status === 403 && hadKey) {
    forgetOperatorKey();
    return bad(`Refused: that operator key is not the right one. ${NOTHING_CHANGED}`, true);
  }
  const why = reply.body?.detail ?? reply.body?.title ?? `status ${reply.status}`;
  return bad(reply.status < 500 ? `Refused: ${why}. ${NOTHING_CHANGED}` : `It did not work out: ${why}.`);
}

function bad(text, wantsKey = false) {
  return { kind: "bad", text, wantsKey };
}
