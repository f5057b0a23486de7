// Submits a flow to a mesh and prints its events until it ends, one JSON object a line.
//
//   node client.js flow.json '{"name": "Ada"}'        STEPFLOW_SERVER is the address of the mesh, by default localhost:7840
//
// There is no generated code: the program loads proto/ when it starts.
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const timers = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const definition = protoLoader.loadSync("stepflow/mesh/v1/runs.proto", {
  includeDirs: [path.join(__dirname, "..", "..", "proto")],
  keepCase: true,
  enums: String,
  longs: Number,
  oneofs: true,
});
const { RunsService } = grpc.loadPackageDefinition(definition).stepflow.mesh.v1;
const RETRIES_MAX = 20;

// Values travel as JSON text, which is exact; `value` instead of `json` would take a google.protobuf.Value.
const value = (tree) => ({ json: Buffer.from(JSON.stringify(tree)) });
const tree = (message) => JSON.parse(message.json);

async function main([flowPath, inputText = "null"]) {
  const client = new RunsService(process.env.STEPFLOW_SERVER || "localhost:7840", grpc.credentials.createInsecure());
  const runId = crypto.randomUUID(); // chosen here, so that a repeated call makes no second run
  const request = {
    run_id: runId,
    flow: { document: value(JSON.parse(fs.readFileSync(flowPath))) },
    inputs: [value(JSON.parse(inputText))],
  };
  await patiently(() => submit(client, request));
  const positions = new Map(); // the last event seen of each partition
  const run = await patiently(() => watch(client, runId, positions));
  client.close();
  return run.status === "RUN_STATUS_COMPLETED" ? 0 : 1;
}

function submit(client, request) {
  return new Promise((resolve, reject) =>
    client.SubmitRun(request, (error, reply) => (error ? reject(error) : resolve(reply)))
  );
}

// Follow the run from the positions on, and return it when it has ended.
async function watch(client, runId, positions) {
  const stream = client.WatchRun({
    run_id: runId,
    positions: [...positions].map(([partition, seq]) => ({ partition, seq })),
    include_results: true,
    value_form: "VALUE_FORM_JSON",
  });
  for await (const { events, position } of stream) {
    for (const event of events) {
      show(event);
      if (event.run_ended) return event.run_ended.run;
    }
    if (position) positions.set(position.partition || 0, position.seq || 0);
  }
  throw Object.assign(new Error("the stream has ended before the run"), { code: grpc.status.UNAVAILABLE });
}

function show(event) {
  const about = event[event.kind];
  const line = { event: event.kind };
  if (about.step) line.step = about.step.step_id;
  if (about.outcome?.result) line.result = tree(about.outcome.result);
  if (about.outcome?.failure) line.failure = about.outcome.failure.message;
  if (about.run) line.status = about.run.status;
  console.log(JSON.stringify(line));
}

// On UNAVAILABLE, repeat the same call.
async function patiently(call) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await call();
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE || tries === RETRIES_MAX) throw error;
      await timers.setTimeout(Math.min(2000, 50 * 2 ** tries));
    }
  }
}

main(process.argv.slice(2)).then(
  (code) => { process.exitCode = code; },
  (error) => {
    console.error(`${grpc.status[error.code] ?? "error"}: ${error.details ?? error.message}`);
    process.exitCode = 2;
  }
);
