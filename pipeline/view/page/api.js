// The OpenAPI document as a page.

const element = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  if (schema.enum) return schema.enum.join(", ");
  return schema.type ?? "anything";
}

function answer(code, { description, content }) {
  const schema = content?.["application/json"]?.schema;
  return make("tr", {}, make("td", {}, make("code", { textContent: code })), make("td", { textContent: description }),
    make("td", { textContent: schema ? typeOf(schema) : "" }));
}

function example(method, path, operation) {
  const body = operation.requestBody?.content["application/json"].example;
  const lines = [`curl -X ${method.toUpperCase()} ${location.origin}${path.replace("{name}", "front")}`];
  if (body) lines.push(`-H 'Content-Type: application/json' -d '${JSON.stringify(body)}'`);
  return lines.join(" \\\n  ");
}

function operation(path, method, found) {
  const head = make("h2", {}, make("code", { className: `verb ${method}`, textContent: method.toUpperCase() }),
    " ", make("code", { textContent: path }));
  const rows = Object.entries(found.responses).map(([code, response]) => answer(code, response));
  return make("section", {}, head, make("p", { textContent: [found.summary, found.description].filter(Boolean).join(". ") }),
    make("pre", { textContent: example(method, path, found) }), make("table", {}, make("tbody", {}, ...rows)));
}

function schema(name, { description, properties = {}, required = [] }) {
  const rows = Object.entries(properties).map(([key, value]) => make("tr", {},
    make("td", {}, make("code", { textContent: key }), required.includes(key) ? "" : " (optional)"),
    make("td", { textContent: typeOf(value) }), make("td", { textContent: value.description ?? "" })));
  return make("section", {}, make("h3", { textContent: name }), make("p", { textContent: description ?? "" }),
    make("table", {}, make("tbody", {}, ...rows)));
}

const found = await (await fetch("/api/openapi.json")).json();
element("title").textContent = `${found.info.title} ${found.info.version}`;
element("description").textContent = found.info.description;
const verbs = ["get", "post", "put", "patch", "delete"];
element("operations").append(...Object.entries(found.paths).flatMap(([path, methods]) =>
  verbs.filter((verb) => methods[verb]).map((verb) => operation(path, verb, methods[verb]))));
element("schemas").append(...Object.entries(found.components.schemas).map(([name, value]) => schema(name, value)));
