// Renders the page of the API from its description, /openapi.json. Supports only the parts of OpenAPI
// 3.1 that the document uses.
"use strict";

// Creates an element with attributes and children. Texts become text nodes, never markup.
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// Renders a text in which `…` is code and an empty line begins a paragraph.
function prose(text = "") {
  return text.split("\n\n").filter(Boolean).map((paragraph) => el("p", {}, inline(paragraph)));
}

function inline(text = "") {
  return text.split(/(`[^`]+`)/).map((part) =>
    part.startsWith("`") && part.length > 2 ? el("code", {}, part.slice(1, -1)) : part);
}

function json(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  return el("pre", { tabindex: "0" }, text);
}

// Resolves a reference; members beside it take precedence.
function resolve(api, part) {
  if (!part || !part.$ref) return part;
  const target = part.$ref.slice(2).split("/").reduce((at, key) => at[key], api);
  const { $ref, ...beside } = part;
  return { ...resolve(api, target), ...beside };
}

function refName(part) {
  return part && part.$ref ? part.$ref.split("/").pop() : null;
}

// Summarises a schema: its name, or its type and limits.
function brief(schema) {
  if (!schema) return [];
  const name = refName(schema);
  if (name) return [el("a", { href: `#schema-${name}` }, name)];
  if (schema.oneOf) {
    return schema.oneOf.flatMap((one, at) => (at ? [" or ", ...brief(one)] : brief(one)));
  }
  if (schema.type === "array") return ["array of ", ...brief(schema.items)];
  if ("const" in schema) return [el("code", {}, JSON.stringify(schema.const))];
  const words = [schema.type ?? "anything"];
  if (schema.enum) words.push(`: ${schema.enum.join(", ")}`);
  if (schema.minimum !== undefined) {
    words.push(schema.maximum === undefined ? `, ${schema.minimum} or more` : `, ${schema.minimum} to ${schema.maximum}`);
  }
  if (schema.maxLength !== undefined) {
    words.push(`, ${schema.minLength} to ${schema.maxLength} characters`);
  }
  if (schema.format) words.push(`, ${schema.format}`);
  return [words.join("")];
}

function table(heads, rows) {
  if (!rows.length) return null;
  return el("table", {},
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell))))));
}

function parameters(api, list) {
  return table(["Parameter", "In", "Takes", ""], list.map((part) => resolve(api, part)).map((p) => [
    [el("code", {}, p.name)],
    [p.required ? `${p.in}, required` : p.in],
    brief(p.schema),
    inline(p.description),
  ]));
}

function headers(api, map) {
  return table(["Header", "Takes", ""], Object.entries(map ?? {}).map(([name, header]) => {
    const { schema, description } = resolve(api, header);
    return [[el("code", {}, name)], brief(schema), inline(description)];
  }));
}

// Renders a body: for each media type its schema and examples.
function content(api, map) {
  return Object.entries(map ?? {}).flatMap(([type, media]) => {
    const examples = Object.values(media.examples ?? {}).map((example) => example.value);
    if ("example" in media) examples.push(media.example);
    const kinds = media.schema ? [": ", ...brief(media.schema)] : [];
    return [el("p", {}, el("code", {}, type), ...kinds), ...examples.map(json)];
  });
}

function response(api, [status, part]) {
  const { description, headers: map, content: bodies } = resolve(api, part);
  const good = status.startsWith("2");
  return el("details", {},
    el("summary", {}, el("strong", { class: good ? "good" : "bad" }, status), " ", inline(description)),
    headers(api, map), content(api, bodies));
}

// Returns a curl command for an operation.
function curl(api, method, path, operation) {
  const id = path.replace("{id}", "a1");
  const words = ["curl -sS"];
  words.push(`${location.origin}${id}`);
  const body = resolve(api, operation.requestBody)?.content?.["application/json"];
  if (body) words.push(`-H 'Content-Type: application/json' -d '${JSON.stringify(body.example)}'`);
  return words.join(" ");
}

function operation(api, path, shared, method, op) {
  const body = resolve(api, op.requestBody);
  return el("section", { id: op.operationId },
    el("h3", {}, el("span", { class: "method" }, method.toUpperCase()), " ", el("code", {}, path)),
    el("p", {}, el("strong", {}, op.summary)),
    prose(op.description),
    parameters(api, [...shared, ...(op.parameters ?? [])]),
    body ? [el("p", {}, "Body: ", inline(body.description)), content(api, body.content)] : null,
    Object.entries(op.responses).map((entry) => response(api, entry)),
    json(curl(api, method, path, op)));
}

function schema(api, [name, part]) {
  const required = new Set(part.required ?? []);
  const members = Object.entries(part.properties ?? {}).map(([member, of]) => {
    const description = of.description ?? (refName(of) ? "" : resolve(api, of).description);
    return [
      [el("code", {}, member)],
      [...brief(of), required.has(member) ? "" : ", may be absent"],
      inline(description),
    ];
  });
  return el("section", { id: `schema-${name}` },
    el("h3", {}, name),
    part.properties ? prose(part.description) : el("p", {}, brief(part), ". ", inline(part.description)),
    table(["Member", "Is", ""], members));
}

// HEAD is GET without the body, which the introduction says once.
const METHODS = ["post", "get", "put", "patch", "delete", "options"];

function page(api) {
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ path, item, method, op: item[method] })));
  const of = (tag) => operations.filter(({ op }) => op.tags.includes(tag));
  const link = ({ path, method, op }) => el("li", {},
    el("a", { href: `#${op.operationId}` }, `${method.toUpperCase()} ${path}`));
  return [
    el("h1", {}, api.info.title, " ", el("span", { class: "faint" }, api.info.version)),
    prose(api.info.description),
    el("p", {}, "For machines: ", el("a", { href: "/openapi.json" }, "openapi.json"),
      ". Errors: ", el("a", { href: "/problems" }, "problems"),
      ". Measurements: ", el("a", { href: "/docs/metrics" }, "metrics"),
      ". Current state: ", el("a", { href: "/" }, "dashboard"), "."),
    el("nav", { "aria-label": "Requests" }, el("ul", {}, operations.map(link))),
    api.tags.flatMap(({ name, description }) => [
      el("h2", {}, description),
      of(name).map(({ path, item, method, op }) =>
        operation(api, path, item.parameters ?? [], method, op)),
    ]),
    el("h2", {}, "Any path"),
    Object.entries({ InvalidHost: "400", NotFound: "404", MethodNotAllowed: "405", WrongHost: "421" })
      .map(([name, status]) => response(api, [status, api.components.responses[name]])),
    el("h2", {}, "Schemas"),
    Object.entries(api.components.schemas).map((entry) => schema(api, entry)),
  ].flat(Infinity);
}

async function show() {
  const main = document.getElementById("docs");
  try {
    const answer = await fetch("/openapi.json");
    if (!answer.ok) throw new Error(`the response was ${answer.status}`);
    main.replaceChildren(...page(await answer.json()));
    // The anchor in the address did not exist when the browser scrolled to it.
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  } catch (error) {
    main.append(el("p", { class: "bad", role: "alert" }, `The description cannot be read: ${error.message}`));
  }
  main.removeAttribute("aria-busy");
}

show();
