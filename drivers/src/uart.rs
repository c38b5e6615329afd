//! The serial console: a 16550 at COM1, polled, output only.

use crate::port::Ports;
use core::fmt;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const TRANSMIT_EMPTY: u8 = 1 << 5;

/// Looks at the status register before a byte is given up, so that a broken UART cannot stop the machine.
const PATIENCE: u32 = 1 << 16;

/// The serial port.
#[derive(Debug, Clone, Copy)]
pub struct Uart(Ports);

impl Uart {
    /// COM1, as firmware or the hypervisor left it.
    pub const COM1: Uart = {
        // SAFETY: the UART has no access to memory.
        Uart(unsafe { Ports::new(0x3f8) })
    };

    /// 115,200 baud, 8 data bits, no parity, no interrupts.
    pub fn init(self) {
        self.0.write8(INTERRUPT_ENABLE, 0);
        self.0.write8(LINE_CONTROL, 0x80);
        self.0.write8(DATA, 1);
        self.0.write8(INTERRUPT_ENABLE, 0);
        self.0.write8(LINE_CONTROL, 0x03);
        self.0.write8(FIFO_CONTROL, 0x07);
        self.0.write8(MODEM_CONTROL, 0x03);
    }

    fn send(self, byte: u8) {
        for _ in 0..PATIENCE {
            if self.0.read8(LINE_STATUS) & TRANSMIT_EMPTY != 0 {
                return self.0.write8(DATA, byte);
            }
        }
    }
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}
