export const e2bPython: string
export function hasE2bPython(): boolean
export function installE2bPython(): void
