// MQTT.js as a slave of test_mqttjs.py: one JSON command a line on stdin; on stdout, one JSON answer a line with the
// command's id, and events ("message", "disconnect", "close") without one. Bytes travel as base64.

import { createInterface } from "node:readline";
import mqtt from "mqtt";

const clients = new Map();

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const properties = ({ correlationData, ...rest } = {}) =>
  correlationData ? { ...rest, correlationData: correlationData.toString("base64") } : rest;

const revive = (options = {}) => {
  const data = options.properties?.correlationData;
  if (!data) return options;
  return { ...options, properties: { ...options.properties, correlationData: Buffer.from(data, "base64") } };
};

const commands = {
  connect: ({ client, port, options }) =>
    new Promise((resolve, reject) => {
      const all = { host: "127.0.0.1", port, clientId: client, reconnectPeriod: 0, ...options };
      if (all.will) all.will = { ...all.will, payload: Buffer.from(all.will.payload, "base64") };
      const it = mqtt.connect(all);
      clients.set(client, it);
      it.once("connect", ({ sessionPresent, reasonCode, returnCode, properties }) =>
        resolve({ sessionPresent, reasonCode: reasonCode ?? returnCode, properties: properties ?? {} }),
      );
      it.once("error", reject);
      it.on("message", (topic, payload, packet) =>
        say({
          event: "message",
          client,
          topic,
          payload: payload.toString("base64"),
          qos: packet.qos,
          retain: packet.retain,
          properties: properties(packet.properties),
        }),
      );
      it.on("disconnect", ({ reasonCode }) => say({ event: "disconnect", client, reasonCode }));
      it.on("close", () => say({ event: "close", client }));
    }),
  subscribe: ({ client, filters, options }) => clients.get(client).subscribeAsync(filters, options),
  unsubscribe: async ({ client, filters }) => {
    await clients.get(client).unsubscribeAsync(filters);
  },
  publish: async ({ client, topic, payload, options }) => {
    await clients.get(client).publishAsync(topic, Buffer.from(payload, "base64"), revive(options));
  },
  end: async ({ client, force }) => {
    await clients.get(client).endAsync(force ?? false);
    clients.delete(client);
  },
  break: ({ client }) => clients.get(client).stream.destroy(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, command, ...rest } = JSON.parse(line);
  Promise.resolve()
    .then(() => commands[command](rest))
    .then((result) => say({ id, result: result ?? null }))
    .catch((error) => say({ id, error: `${error.code ?? ""} ${error.message}`.trim() }));
}
process.exit(0);
