"use strict";

// Everything is set as text, never as HTML: nothing in the document can run here.
let apiKey = "";

function element(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function resolve(spec, schema) {
  return schema.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema;
}

// A value that fits the schema, to start from; `depth` stops schemas that hold themselves.
function sample(spec, schema, depth = 0) {
  const s = resolve(spec, schema);
  if (s.default !== undefined) return s.default;
  if (s.const !== undefined) return s.const;
  if (s.enum) return s.enum[0];
  if (s.anyOf) return sample(spec, s.anyOf[0], depth);
  if (s.type === "object") {
    if (depth > 5) return {};
    const entries = Object.entries(s.properties || {});
    return Object.fromEntries(entries.map(([name, p]) => [name, sample(spec, p, depth + 1)]));
  }
  if (s.type === "array") return depth > 5 ? [] : [sample(spec, s.items || {}, depth + 1)];
  return { string: "text", integer: s.minimum ?? 0, number: s.minimum ?? 0, boolean: false, null: null }[s.type] ?? null;
}

// The least body that is accepted.
function requestSample(spec, schema) {
  const s = resolve(spec, schema);
  if (s.title === "Submission") return { task_type: "test", task_data: { message: "hello" } };
  return Object.fromEntries((s.required || []).map((name) => [name, sample(spec, s.properties[name])]));
}

function typeName(spec, schema) {
  const s = resolve(spec, schema);
  if (s.anyOf) return s.anyOf.map((each) => typeName(spec, each)).join(" or ");
  if (s.enum) return s.enum.join(" | ");
  return s.format ? `${s.type} (${s.format})` : s.type || "any";
}

function fieldTable(spec, rows) {
  const table = element("table");
  const head = table.createTHead().insertRow();
  for (const title of ["name", "type", "meaning"]) head.append(element("th", title));
  const body = table.createTBody();
  for (const [name, schema, required, meaning] of rows) {
    const row = body.insertRow();
    row.insertCell().append(element("code", required ? `${name} *` : name));
    row.insertCell().textContent = typeName(spec, schema);
    row.insertCell().textContent = meaning || "";
  }
  return table;
}

function bodyOf(operation) {
  return operation.requestBody?.content["application/json"].schema;
}

function tryForm(spec, path, method, operation) {
  const form = element("form");
  const inputs = (operation.parameters || []).map((parameter) => {
    const label = element("label", parameter.name);
    const input = element("input");
    label.append(input);
    form.append(label);
    return [parameter, input];
  });
  let text = null;
  if (bodyOf(operation)) {
    text = element("textarea");
    text.setAttribute("aria-label", "request body");
    text.value = JSON.stringify(requestSample(spec, bodyOf(operation)), null, 2);
    form.append(text);
  }
  const output = element("pre");
  output.hidden = true;
  form.append(element("button", "Send"), output);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    output.hidden = false;
    output.textContent = await send(path, method, inputs, text);
  });
  return form;
}

async function send(path, method, inputs, text) {
  const headers = apiKey ? { "X-API-Key": apiKey } : {};
  const query = new URLSearchParams();
  for (const [parameter, input] of inputs) {
    if (!input.value) continue;
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "query") query.set(parameter.name, input.value);
    else headers[parameter.name] = input.value;
  }
  if (text) headers["Content-Type"] = "application/json";
  try {
    const target = query.size ? `${path}?${query}` : path;
    const response = await fetch(target, { method: method.toUpperCase(), headers, body: text?.value });
    return `${response.status}\n${JSON.stringify(await response.json(), null, 2)}`;
  } catch (error) {
    return `The service cannot be reached: ${error.message}`;
  }
}

function show(spec, path, method, operation) {
  const details = element("details");
  const summary = element("summary");
  summary.append(element("span", method, `method ${method}`), element("code", path), element("span", ` ${operation.summary}`));
  const body = element("div", undefined, "body");
  if (operation.parameters) {
    body.append(element("h3", "Parameters"));
    body.append(fieldTable(spec, operation.parameters.map((p) => [p.name, p.schema, p.required, p.description])));
  }
  if (bodyOf(operation)) {
    const schema = resolve(spec, bodyOf(operation));
    const required = new Set(schema.required || []);
    body.append(element("h3", "Body"));
    body.append(fieldTable(spec, Object.entries(schema.properties).map(([name, p]) => [name, p, required.has(name), p.description])));
  }
  const success = operation.responses["200"];
  if (success) {
    body.append(element("h3", "Answer"));
    body.append(element("pre", JSON.stringify(sample(spec, success.content["application/json"].schema), null, 2)));
  }
  body.append(element("p", `Refusals: ${Object.keys(operation.responses).filter((s) => s !== "200").join(", ")}`));
  body.append(element("h3", "Try it"), tryForm(spec, path, method, operation));
  details.append(summary, body);
  return details;
}

function render(spec) {
  document.title = `${spec.info.title} API`;
  document.getElementById("title").textContent = `${spec.info.title} ${spec.info.version}`;
  document.getElementById("description").textContent = spec.info.description;
  const groups = new Map();
  for (const [path, operations] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags[0];
      if (!groups.has(tag)) groups.set(tag, [element("h2", tag)]);
      groups.get(tag).push(show(spec, path, method, operation));
    }
  }
  document.getElementById("operations").replaceChildren(...[...groups.values()].flat());
}

async function load() {
  const description = document.getElementById("description");
  const form = document.getElementById("key-form");
  try {
    const response = await fetch("/openapi.json", { headers: apiKey ? { "X-API-Key": apiKey } : {} });
    form.hidden = response.status !== 401;
    if (response.ok) render(await response.json());
    else description.textContent = (await response.json()).message;
  } catch (error) {
    description.textContent = `The description cannot be loaded: ${error.message}`;
  }
}

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = document.getElementById("key").value;
  load();
});
load();
