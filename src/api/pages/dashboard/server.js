// What is asked of the server: JSON in and out, and an error that says in words what was wrong.

// Longer than anything here takes, short enough that the page says soon that nothing comes.
const PATIENCE_MS = 5000;

// An answer that is not what was asked for, or none at all.
export class Trouble extends Error {
  constructor(words, answer = null, problem = null) {
    super(words);
    this.status = answer?.status ?? null;
    this.kind = problem?.type?.split("#")[1] ?? null;
    this.next = answer && linked(answer);
  }
}

// The answer, if it is a good one.
export async function request(path, { signal, patience: ms = PATIENCE_MS, ...options } = {}) {
  const patience = AbortSignal.timeout(ms);
  let answer;
  try {
    answer = await fetch(path, { ...options, signal: signal ? AbortSignal.any([signal, patience]) : patience });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Trouble(patience.aborted ? "the program does not answer in time" : "the program does not answer");
  }
  if (answer.ok) return answer;
  throw await trouble(answer);
}

// What an answer that is no good says, in words.
export async function trouble(answer) {
  let problem = null;
  try {
    problem = await answer.json();
  } catch {
    // A proxy on the way may answer with anything.
  }
  return new Trouble(problem?.detail ?? `the answer was ${answer.status}`, answer, problem);
}

export async function ask(path, options) {
  return (await request(path, options)).json();
}

// Where the answer's header Link leads, if it has one.
function linked(answer) {
  const link = answer.headers.get("link");
  return link && new URL(link.slice(1, link.indexOf(">")), location.origin);
}

// A page of a list, and where the next one begins, if there is one. Where reading cannot go on from
// a position, because of a prune or a restored backup, what is left is all that is to be shown.
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

// The path of an order, in which a shell minds nothing.
export function orderPath(id) {
  const escape = (one) => `%${one.charCodeAt().toString(16)}`;
  return `/order/${encodeURIComponent(id).replaceAll(/[!'()*]/g, escape)}`;
}
