import type { PromotionReport } from '../../src/native/group.js';

/** Of a promotion that went well. */
export const report: PromotionReport = {
  epoch: 9,
  pid: 4,
  hostPid: 2000,
  exact: true,
  decisionToRunUs: 150,
  deathToRunUs: 900,
  lazyPages: 0,
  keeperSocket: '/run/replpage/keepers/a.1.sock',
};
