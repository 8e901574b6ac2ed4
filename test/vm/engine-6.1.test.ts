/** The engine's own tests on Debian's kernel 6.1: see engine.ts. */
import { testEngine } from './engine.js';

testEngine('6.1');
