// MQTT.js logs in with SCRAM-SHA-256 (RFC 7677), written here with Node's own cryptography: scram.mjs PORT USER PASSWORD.
// Prints "connected", or the reason code with which it was refused.

import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import mqtt from "mqtt";

const [port, user, password] = process.argv.slice(2);
const method = "SCRAM-SHA-256";
const hmac = (key, text) => createHmac("sha256", key).update(text).digest();
const bare = `n=${user},r=${randomBytes(18).toString("base64")}`;
let signature;

const client = mqtt.connect({
  host: "127.0.0.1",
  port,
  protocolVersion: 5,
  reconnectPeriod: 0,
  properties: { authenticationMethod: method, authenticationData: Buffer.from(`n,,${bare}`) },
});

client.handleAuth = ({ properties }, done) => {
  const challenge = properties.authenticationData.toString();
  const { r, s, i } = Object.fromEntries(challenge.split(",").map((part) => [part[0], part.slice(2)]));
  const salted = pbkdf2Sync(password, Buffer.from(s, "base64"), Number(i), 32, "sha256");
  const key = hmac(salted, "Client Key");
  const final = `c=biws,r=${r}`;
  const all = `${bare},${challenge},${final}`;
  const proof = hmac(createHash("sha256").update(key).digest(), all).map((byte, index) => byte ^ key[index]);
  signature = hmac(hmac(salted, "Server Key"), all).toString("base64");
  const answer = Buffer.from(`${final},p=${Buffer.from(proof).toString("base64")}`);
  done(undefined, {
    cmd: "auth",
    reasonCode: 0x18,
    properties: { authenticationMethod: method, authenticationData: answer },
  });
};
client.on("connect", ({ properties }) => {
  const proved = properties.authenticationData.toString() === `v=${signature}`;
  console.log(proved ? "connected" : "the broker does not know the password");
  client.end();
});
client.on("error", ({ code, message }) => {
  console.log(String(code ?? message));
  client.end();
});
