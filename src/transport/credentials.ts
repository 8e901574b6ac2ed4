/** What a node shows of itself, and whom it believes. All PEM. */
export interface Credentials {
  readonly cluster: string;
  readonly certificate: string;
  readonly privateKey: string;
  readonly ca: string;
}
