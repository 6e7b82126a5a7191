export {
  type BootMethod,
  type CodeFailure,
  type CreatedKeyItem,
  type CreatedSshKeyItem,
  contracts,
  type DriverItem,
  type DriverKind,
  driverKinds,
  type ErrorBody,
  type ErrorCode,
  type ExecResult,
  type ExecuteRequest,
  type ExecuteResult,
  errorTable,
  executeModes,
  type FileItem,
  type Fork,
  type FunctionItem,
  functionConfigSchema,
  functionNameSchema,
  type ImageItem,
  type Info,
  type InvocationItem,
  type InvocationStatus,
  isErrorCode,
  type KeyCreate,
  type KeyItem,
  type LogEntry,
  networkModes,
  type PoolItem,
  poolRuntimes,
  type Restore,
  type Role,
  roles,
  runtimes,
  type SandboxCreate,
  type SandboxItem,
  type SandboxState,
  type SandboxStats,
  type SandboxTree,
  type SandboxUpdate,
  type SecretItem,
  type SnapshotCreate,
  type SnapshotItem,
  type SshKeyCreate,
  type SshKeyItem,
  type SshKeyRotate,
  sandboxNameSchema,
  sandboxStates,
  snapshotKinds,
  ThawError,
  type VersionItem,
} from '@thaw/protocol'
export type { CodeSource } from './code.ts'
export type { CallOptions, CreateOptions, DeployOptions, FunctionChange, FunctionInput, Functions, LogOptions } from './functions.ts'
export type { FetchFunction } from './http.ts'
export type { ImageBuildOptions, ImageCreateOptions, Images, PruneResult } from './images.ts'
export type { Invocations } from './invocations.ts'
export type { InvokeOptions, InvokeResult, Payload } from './invoke.ts'
export type { Keys } from './keys.ts'
export type { Page, PageQuery, Pages } from './page.ts'
export type { Pools } from './pools.ts'
export type { ExecOptions } from './sandboxes/exec.ts'
export type {
  CopyProgress,
  FileContent,
  FileCopyOptions,
  FileEvent,
  FileOptions,
  FileWatch,
  SandboxFiles,
} from './sandboxes/files.ts'
export type { ForwardOptions, PortForward } from './sandboxes/forward.ts'
export {
  type AttachOptions,
  type Command,
  loginShell,
  type OnOutput,
  type ProcessExit,
  type ProcessInput,
  type SandboxProcess,
  type SandboxTerminal,
  type StartOptions,
  type TerminalOptions,
} from './sandboxes/process.ts'
export type { Sandbox } from './sandboxes/sandbox.ts'
export type { Sandboxes, SandboxQuery } from './sandboxes/sandboxes.ts'
export type { Forked, ImportOptions, SnapshotArchive, SnapshotQuery, Snapshots, TransferOptions } from './sandboxes/snapshots.ts'
export type { Secrets } from './secrets.ts'
export type { SshKeys } from './ssh-keys.ts'
export type { InvocationStream } from './stream.ts'
export { Thaw, type ThawOptions } from './thaw.ts'
export type { Timing } from './timing.ts'
