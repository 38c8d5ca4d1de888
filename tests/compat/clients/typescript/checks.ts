// What the clients in TypeScript share: one line for each check, "ok" or what was found instead.
declare const process: { argv: string[]; exitCode?: number };
const [baseUrl, password, token] = process.argv.slice(2);
if (!baseUrl || !password || !token) throw new Error("usage: URL PASSWORD TOKEN");

export const given = { baseUrl, password, token };
export const basic = (password: string) => `Basic ${btoa(`openim:${password}`)}`;

export function equal<T>(found: T, expected: T): void {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`expected ${JSON.stringify(expected)}, found ${JSON.stringify(found)}`);
  }
}

export async function check(name: string, body: () => Promise<void>): Promise<void> {
  try {
    await body();
    console.log(`${name} ok`);
  } catch (error) {
    console.log(`${name} ${String(error).replaceAll("\n", " ")}`);
  }
}
