// What relying parties share: they print what a person shall do, as one line of JSON, and read what came of it.
import { createInterface } from 'node:readline';

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

export const settings = JSON.parse(process.argv[2]);

export async function ask(what) {
  console.log(JSON.stringify(what));
  return JSON.parse((await lines.next()).value);
}

export function done(found) {
  console.log(JSON.stringify({ done: found }));
  process.exit(0);
}

/** The OAuth error that something is refused with; "" if it is not. */
export async function refused(promise) {
  try {
    await promise;
    return '';
  } catch (error) {
    return error.error ?? error.cause?.error ?? error.cause?.[0]?.parameters?.error ?? error.code ?? String(error);
  }
}
