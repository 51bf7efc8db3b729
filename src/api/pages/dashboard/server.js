// Requests to the server: JSON in and out, and errors in words.

// Longer than any request takes, and short enough to report a silent server soon.
const TIMEOUT_MS = 5000;

// An error response, or none at all.
export class RequestError extends Error {
  constructor(words, answer = null, problem = null) {
    super(words);
    this.status = answer?.status ?? null;
    this.kind = problem?.type?.split("#")[1] ?? null;
    this.next = answer && linked(answer);
  }
}

// Sends a request. Throws unless the response is successful.
export async function request(path, { signal, timeout: ms = TIMEOUT_MS, ...options } = {}) {
  const timeout = AbortSignal.timeout(ms);
  let answer;
  try {
    answer = await fetch(path, { ...options, signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new RequestError(timeout.aborted ? "the program does not answer in time" : "the program does not answer");
  }
  if (answer.ok) return answer;
  throw await errorOf(answer);
}

// Returns the error in a response.
export async function errorOf(answer) {
  let problem = null;
  try {
    problem = await answer.json();
  } catch {
    // A proxy may respond with anything.
  }
  return new RequestError(problem?.detail ?? `the response was ${answer.status}`, answer, problem);
}

export async function ask(path, options) {
  return (await request(path, options)).json();
}

// Returns the target of the header Link, if any.
function linked(answer) {
  const link = answer.headers.get("link");
  return link && new URL(link.slice(1, link.indexOf(">")), location.origin);
}

// Reads a page of a list. Returns it with the cursor of the next one, if any. If reading cannot resume
// from a cursor, because of a prune or a restored backup, returns the remaining records.
export async function askPage(path, options) {
  const answer = await request(path, options).catch((error) => {
    if (error.kind !== "removed" || !error.next) throw error;
    return request(error.next, options);
  });
  return { items: await answer.json(), next: linked(answer)?.searchParams.get("after") ?? null };
}

export function post(path, body) {
  const json = { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return ask(path, { method: "POST", ...(body ? json : {}) });
}

// Returns the path of an order, without characters that a shell interprets.
export function orderPath(id) {
  const escape = (one) => `%${one.charCodeAt().toString(16)}`;
  return `/order/${encodeURIComponent(id).replaceAll(/[!'()*]/g, escape)}`;
}
