/**
 * Rules about the sources themselves: who may import whom, how long files and functions may be, and
 * names that say nothing. docs/architecture.md has the reasons.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, relative, sep } from 'node:path';
import t from 'tap';
import ts from 'typescript';

const root = join(import.meta.dirname, '../..');
const fileLinesMax = 500;
const functionLinesMax = 70;

interface Source {
  /** From the repository's top, with slashes. */
  readonly path: string;
  readonly text: string;
}

function sources(folder: string, pattern: RegExp): readonly Source[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => pattern.test(name))
    .map((name) => join(folder, name).split(sep).join('/'))
    .map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }));
}

const typescript = sources('src', /\.ts$/);
const native = sources('native', /\.(cc|h)$/);
const tested = native.filter(({ path }) => !path.startsWith('native/test/'));

/** Folder of src -> folders it may import besides itself. */
const layers: Readonly<Record<string, readonly string[]>> = {
  base: [],
  format: ['base'],
  native: ['base'],
  transport: ['base', 'format'],
  capture: ['base', 'format', 'transport', 'native'],
  replica: ['base', 'format', 'transport', 'native'],
  paging: ['base', 'format', 'transport', 'native'],
  mirror: ['base', 'format', 'transport', 'native'],
  membership: ['base', 'format', 'transport', 'native'],
  recovery: [
    ...['base', 'format', 'transport', 'native'],
    ...['capture', 'replica', 'paging', 'mirror', 'membership'],
  ],
  api: ['base'],
  cli: ['base', 'api'],
  web: ['base', 'api'],
  daemon: [
    ...['base', 'format', 'transport', 'native', 'api', 'web'],
    ...['capture', 'replica', 'paging', 'mirror', 'membership', 'recovery'],
  ],
};

/** Commands that run the daemon's own code. */
const daemonCommands = ['src/cli/daemon.ts', 'src/cli/doctor.ts'];

function importsOf({ path, text }: Source): readonly string[] {
  const pattern = /(?:from|import)\s*\(?\s*'([^']+)'/g;
  return [...text.matchAll(pattern)]
    .map((match) => match[1] ?? '')
    .filter((name) => name.startsWith('.'))
    .map((name) => normalize(join(dirname(path), name)));
}

const layerOf = (path: string): string => path.split('/')[1] ?? '';

t.test('folders of src import only what lies below them', (t) => {
  for (const source of typescript) {
    const layer = layerOf(source.path);
    const allowed = layers[layer];
    if (allowed === undefined) {
      t.fail(`${source.path}: ${layer} has no place in the table of layers`);
      continue;
    }
    for (const target of importsOf(source)) {
      const other = layerOf(target);
      const wired = daemonCommands.includes(source.path) && other === 'daemon';
      if (other === layer || allowed.includes(other) || wired) continue;
      t.fail(`${source.path} imports ${target}`);
    }
  }
  t.ok(typescript.length > 20, 'the sources were found');
  t.end();
});

t.test('only src/native loads the addon, and only base and daemon read configuration', (t) => {
  for (const { path, text } of typescript) {
    if (/\.node'|createRequire/.test(text) && path !== 'src/native/binding.ts') {
      t.fail(`${path} loads native code`);
    }
    if (/\bexport default\b/.test(text)) t.fail(`${path} has a default export`);
    if (/from '(?!node:|\.)(?!commander'|pino'|@peculiar\/x509'|reflect-metadata')/.test(text)) {
      t.fail(`${path} imports a package that is no dependency`);
    }
  }
  t.end();
});

t.test('policies and state machines are pure', (t) => {
  const pure = typescript.filter(({ path }) => /[-/](policy|state)\.ts$/.test(path));
  t.ok(pure.length >= 2);
  for (const { path, text } of pure) {
    const impure = /from 'node:|Date\.now|new Date|performance\.|Math\.random|process\.|async /;
    const found = impure.exec(text)?.[0];
    if (found !== undefined) t.fail(`${path} uses ${found}`);
  }
  t.end();
});

/** Middle parts of core know base and each other; what builds on them does not know each other. */
const middle = ['memory', 'uffd', 'trace', 'image', 'channel', 'store'];
const coreLayers: Readonly<Record<string, readonly string[]>> = {
  base: [],
  ...Object.fromEntries(middle.map((part) => [part, ['base', ...middle]])),
  address: ['base'],
  restore: ['base', ...middle, 'address'],
  requirements: ['base', 'memory', 'image'],
  access: ['base', 'memory', 'image'],
  paging: ['base', 'memory', 'image', 'access', 'store'],
  staging: ['base', ...middle],
  link: ['base', ...middle, 'staging'],
  peer: ['base', ...middle, 'staging', 'link'],
  group: ['base', ...middle, 'access', 'paging', 'staging', 'link'],
  capture: ['base', ...middle, 'staging', 'link', 'group'],
  death: ['base', ...middle, 'address', 'staging', 'link', 'group'],
  checkpoint: ['base', ...middle, 'staging', 'link', 'group'],
  session: ['base', ...middle, 'staging', 'link', 'group', 'capture', 'death', 'checkpoint'],
};

function includesOf({ text }: Source): readonly string[] {
  return [...text.matchAll(/^#include "([^"]+)"/gm)].map((match) => match[1] ?? '');
}

t.test('parts of native include only what lies below them', (t) => {
  for (const source of tested) {
    const [, area = '', part = ''] = source.path.split('/');
    for (const include of includesOf(source)) {
      const [otherArea = '', otherPart = ''] = include.split('/');
      if (otherArea !== 'core') {
        if (otherArea !== area) t.fail(`${source.path} includes ${include}`);
        continue;
      }
      if (area !== 'core' || otherPart === part) continue;
      const allowed = coreLayers[part];
      if (allowed === undefined) t.fail(`core/${part} has no place in the table of layers`);
      else if (!allowed.includes(otherPart)) t.fail(`${source.path} includes ${include}`);
    }
  }
  t.end();
});

t.test('only native/binding knows Node.js', (t) => {
  for (const { path, text } of native) {
    if (path.startsWith('native/binding/')) continue;
    if (/#include <(napi|node_api|node|uv|v8)\b/.test(text)) t.fail(`${path} includes it`);
  }
  t.end();
});

const lineCount = (text: string): number => text.split('\n').length - 1;

t.test(`no file has more than ${fileLinesMax} lines`, (t) => {
  for (const { path, text } of [...typescript, ...tested]) {
    if (lineCount(text) > fileLinesMax) t.fail(`${path} has ${lineCount(text)}`);
  }
  t.end();
});

function functionsOf({ path, text }: Source): readonly { name: string; lines: number }[] {
  const file = ts.createSourceFile(path, text, ts.ScriptTarget.ES2022, true);
  const found: { name: string; lines: number }[] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isFunctionLike(node) && 'body' in node && node.body !== undefined) {
      const start = file.getLineAndCharacterOfPosition(node.getStart()).line;
      const end = file.getLineAndCharacterOfPosition(node.getEnd()).line;
      found.push({ name: `${path}:${start + 1}`, lines: end - start + 1 });
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  return found;
}

/**
 * A definition ends with a brace in the column in which it began: that is how the formatter sets
 * functions of a namespace (column 0) and of a class (column 2).
 */
function nativeFunctionsOf({ path, text }: Source): readonly { name: string; lines: number }[] {
  const lines = text.split('\n');
  const found: { name: string; lines: number }[] = [];
  lines.forEach((line, end) => {
    const indent = /^( {0}| {2})\}$/.exec(line)?.[1];
    if (indent === undefined) return;
    const opening = new RegExp(`^${indent}[^\\s}#/:]`);
    let start = end - 1;
    while (start > 0 && !opening.test(lines[start] ?? '')) start--;
    const first = (lines[start] ?? '').trim();
    if (/^(namespace|class|struct|enum|union|extern|if|for|while|switch|do)\b/.test(first)) return;
    found.push({ name: `${path}:${start + 1}`, lines: end - start + 1 });
  });
  return found;
}

t.test(`no function has more than ${functionLinesMax} lines`, (t) => {
  const all = [...typescript.flatMap(functionsOf), ...tested.flatMap(nativeFunctionsOf)];
  for (const { name, lines } of all) {
    if (lines > functionLinesMax) t.fail(`${name} has ${lines}`);
  }
  t.ok(all.length > 200, `${all.length} functions were found`);
  t.end();
});

t.test('names say what a thing is', (t) => {
  for (const { path } of [...typescript, ...native]) {
    if (/(^|[/_-])(utils?|helpers?|manager|common|misc)([._/-]|$)/i.test(path)) t.fail(path);
  }
  const banned = /\b(?:class|struct|interface|namespace)\s+\w*(?:Util|Helper|Manager)\w*/;
  for (const { path, text } of [...typescript, ...native]) {
    const found = banned.exec(text)?.[0];
    if (found !== undefined) t.fail(`${path}: ${found}`);
  }
  for (const { path } of typescript) {
    t.match(relative('src', path), /^[a-z0-9/-]+\.ts$/, `${path} is in kebab-case`);
  }
  for (const { path } of native) t.match(path, /^[a-z0-9_/.]+$/, `${path} is in snake_case`);
  t.end();
});
