/** The address at which a group's clients find it, as the native side has it. */

/** An address as an interface has it. */
export interface FoundAddress {
  /** Put there by replpage, this daemon or another. */
  readonly ours: boolean;
  /** As in "10.0.0.9/24 on eth0". */
  readonly where: string;
}

/** ADDRESS/PREFIX@INTERFACE in the daemon's own network namespace. All reject with a SystemError. */
export interface NativeServiceAddress {
  /** Always written in the same way. */
  readonly text: string;
  /** Anywhere on this machine, with whatever prefix. Rejects with ENODEV: no such interface. */
  find(): Promise<FoundAddress | undefined>;
  /**
   * Puts it on its interface where it is not there, and tells the neighbours, for some seconds and
   * again. True: it is new. Rejects with EEXIST where somebody else configured it; ENODEV, EPERM.
   */
  take(): Promise<boolean>;
  /** Takes it away where it is ours; false: nothing of ours was there. */
  giveUp(): Promise<boolean>;
  /** Swallows what is sent to it and from it until `lift`, or until this process ends. */
  drop(): Promise<void>;
  lift(): Promise<void>;
}
