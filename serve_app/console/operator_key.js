// The operator key a person entered: the browser keeps it for this tab and drops it with the tab.

const NAME = "switchyard.operator-key";

let unstored = null; // for a browser that allows no storage

/** The key, or null. */
export function operatorKey() {
  try {
    return sessionStorage.getItem(NAME) ?? unstored;
  } catch {
    return unstored;
  }
}

/** Keep a key. */
export function keepOperatorKey(key) {
  try {
    sessionStorage.setItem(NAME, key);
  } catch {
    unstored = key;
  }
}

/** Forget the key. */
export function forgetOperatorKey() {
  unstored = null;
  try {
    sessionStorage.removeItem(NAME);
  } catch {
    // then it never was there
  }
}

/** The headers that carry the key, when there is one. */
export function credentials() {
  const key = operatorKey();
  return key === null ? {} : { authorization: `Bearer ${key}` };
}
