package org.acegisecurity.userdetails

/** Jenkins knows the user, but the directory in which its users are (LDAP, Unix) does not. */
class UsernameNotFoundException extends RuntimeException {
    UsernameNotFoundException(String message) {
        super(message)
    }
}
